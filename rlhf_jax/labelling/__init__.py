"""People compare answers on a page; their judgements become records."""
