"""The use of a trained model: predictions on images of any kind, exports, and a page to try it."""
