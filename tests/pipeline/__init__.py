"""The whole way, from the source's employees to the destination's."""
