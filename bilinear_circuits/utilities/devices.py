"""Devices that torch can compute on."""


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or does not have.

    Raises:
        ValueError: If it cannot be used.
    """
    import torch

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        reason = "no such device; name cpu, cuda or cuda:1" if "Expected one of" in reason else reason
        raise ValueError(f"device must be one that torch can use, got {device}: {reason}") from error
