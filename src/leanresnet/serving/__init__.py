"""The use of a trained model: predictions for any image, exports to other formats, and a web page to try the models."""
