"""LoRA adapters in the engine: PEFT's folders, and their products beside those of the base model.

The engine, the loading of models and the workers' adapters (workers/lora) import this package.
"""
