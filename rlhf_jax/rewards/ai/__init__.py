"""Judges that are language models: questions, who answers them, their cache."""
