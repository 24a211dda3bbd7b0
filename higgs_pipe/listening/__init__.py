"""What is heard: speech models, and measures of recordings and of generated speech."""
