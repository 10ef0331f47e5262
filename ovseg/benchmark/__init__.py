"""The heads against the truth of held-out scenes, each beside what a trivial answer reaches."""
