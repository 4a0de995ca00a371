"""harness/: what the tests are written with."""
