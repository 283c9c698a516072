"""Whether a dictionary fits one side of an MLP."""

from bilinear_circuits.dictionaries.dictionary import Dictionary


def check_fits(
    argument: str, dictionary: Dictionary, width: int, hook_name: str, aliases: tuple[str, ...], layer: int
) -> None:
    """Refuse a dictionary of another place than one side of an MLP.

    Args:
        argument: Name of the argument, for the error.
        dictionary: The dictionary.
        width: Width of the side.
        hook_name: Its hook.
        aliases: Other names of that hook.
        layer: Layer of the MLP.

    Raises:
        ValueError: If the width is another, or the dictionary was trained elsewhere.
    """
    if dictionary.d_in != width:
        raise ValueError(
            f"{argument} must fit layer {layer}, whose {hook_name} has width {width}, got {dictionary.name} with"
            f" W_enc {tuple(dictionary.W_enc.shape)}, of width {dictionary.d_in}."
        )
    if dictionary.hook_name is None or dictionary.hook_name in (hook_name, *aliases):
        return
    hint = ""
    if dictionary.hook_name == f"blocks.{layer}.ln2.hook_normalized":
        hint = " Read the MLP there with mlp.before_norm_weight()."
    raise ValueError(
        f"{argument} must be trained on {hook_name} of width {width}, got {dictionary.name} trained on"
        f" {dictionary.hook_name} with W_enc {tuple(dictionary.W_enc.shape)}.{hint}"
    )
