"""leanresnet: the most accurate ResNet that fits a parameter budget."""
