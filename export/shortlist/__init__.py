"""The lexical shortlist: parallel text in, for each source token the target tokens that may come of it out."""
