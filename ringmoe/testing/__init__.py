"""Public helpers for tests of this package and of what others build on it."""
