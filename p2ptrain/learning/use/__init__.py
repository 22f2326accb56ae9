"""What a trained model is used for: answers about files, texts, formats of other programs."""
