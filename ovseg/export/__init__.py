"""Models that leave Python: files that other runtimes execute, and one runtime without torch."""
