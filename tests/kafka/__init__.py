"""Kafka: records as messages, publishing, taking messages, offsets."""
