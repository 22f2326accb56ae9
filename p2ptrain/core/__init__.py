"""What every mode uses and none owns."""
