"""A Hugging Face `Trainer` that logs through sidestep: one argument, `callbacks=[...]`.

A tiny language model with random weights (nothing is downloaded) learns to count modulo ten.

    pip install 'sidestep[transformers]'
    sidestep run -- python client/examples/huggingface_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from sidestep.client.transformers import SidestepCallback

DIGITS, LENGTH = 10, 12


def counting(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences (LENGTH,) such as 7 8 9 0 1 …, as a language model takes them."""
    starts = torch.arange(count) % DIGITS
    rows = (starts[:, None] + torch.arange(LENGTH)) % DIGITS
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    """Train, and evaluate after each epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", default="huggingface")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    set_seed(0)
    config = GPT2Config(vocab_size=DIGITS, n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),
            num_train_epochs=args.epochs,
            learning_rate=3e-3,
            logging_steps=5,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",  # the callback below is all that reports
            disable_tqdm=True,
        ),
        train_dataset=counting(160),
        eval_dataset=counting(DIGITS),
        callbacks=[SidestepCallback(args.run)],
    )
    trainer.train()
    print(f"eval_loss {trainer.evaluate()['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
