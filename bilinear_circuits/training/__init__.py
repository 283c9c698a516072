"""Language models trained by the Hugging Face Trainer."""
