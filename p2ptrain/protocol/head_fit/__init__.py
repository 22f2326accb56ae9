"""Re-fitting the model's last layer by the whole group."""
