"""Data sets that another library opens: of Hugging Face's datasets, and ``torch.utils.data.Dataset`` of one's own."""
