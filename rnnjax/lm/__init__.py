"""The language model: text in, trained model and samples out."""
