"""leanresnet trains the most accurate ResNet within a parameter budget."""
