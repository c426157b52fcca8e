from torchvision import __getattr__  # noqa: F401


class ImageReadMode:
    RGB = 3
