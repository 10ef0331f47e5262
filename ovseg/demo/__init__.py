"""The page in a browser: drop a photo, type words, see what they mean in pixels. See `docs/demo.md`."""
