"""How a policy behaves: suites that ask it, and what they measure."""
