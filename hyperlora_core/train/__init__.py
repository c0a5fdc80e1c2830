"""Training: one loop (loop.py) on accelerate, and what it trains: HyperLoRA stage by stage, and the demo's models."""
