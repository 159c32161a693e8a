"""DemoUNet for diffusers' from_pretrained with trust_remote_code=True."""

try:
    from demo_t2v.models.unet import DemoUNet
except ModuleNotFoundError as error:
    if error.name != "demo_t2v":
        raise
    raise ModuleNotFoundError("this model needs demo-t2v: pip install demo-t2v") from error

__all__ = ["DemoUNet"]
