"""Large atlas in, a few synthetic cells a class out."""
