"""The two files of a LoRA adapter in the format of the PEFT library."""

CONFIG_FILE = "adapter_config.json"  # rank, alpha, names of the adapted layers
# Its names are base_model.model.LAYER.lora_A.weight, [rank, inputs], and lora_B.weight, [outputs, rank].
WEIGHTS_FILE = "adapter_model.safetensors"
