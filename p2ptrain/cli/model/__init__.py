"""Commands that use a harvested model."""
