"""The CIFAR-10 record: its model, configuration and study in one place."""
