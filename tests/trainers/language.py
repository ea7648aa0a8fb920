"""Trainers of language models, and of translation."""

from __future__ import annotations

import torch

from tests.trainers.files import ADAM, Dcp, Files, Link, Point, Safe, Trainer, names, other_model, weights

CONFIG = {"model_type": "llama", "torch_dtype": "float32"}


def _fairseq(point: Point, updates: int, epoch: int) -> dict[str, object]:
    history = [{"num_updates": updates, "optimizer_name": "Adam"}]
    extra = {"train_iterator": {"epoch": epoch}, "val_loss": 3.5}
    return {"cfg": {}, "model": weights(point), "optimizer_history": history, "extra_state": extra, "criterion": {}}


def _hf_trainer(point: Point) -> Files:
    folder = f"checkpoint-{point.at}"
    return {
        f"{folder}/model.safetensors": weights(point),
        f"{folder}/config.json": CONFIG,
        f"{folder}/trainer_state.json": {"global_step": point.at, "epoch": point.number / 3, "log_history": []},
        f"{folder}/optimizer.pt": ADAM,
        f"{folder}/scheduler.pt": {"last_epoch": point.at},
        f"{folder}/rng_state.pth": {"cpu": torch.ones(4, dtype=torch.uint8)},
        f"{folder}/training_args.bin": {"lr": 0.1},
    }


def _sharded(point: Point, folder: str) -> Files:
    state = weights(point)
    files = {name: f"pytorch_model-0000{1 + (name == 'head.weight')}-of-00002.bin" for name in state}
    return {
        f"{folder}/pytorch_model.bin.index.json": {"metadata": {}, "weight_map": files},
        f"{folder}/pytorch_model-00001-of-00002.bin": {n: t for n, t in state.items() if n != "head.weight"},
        f"{folder}/pytorch_model-00002-of-00002.bin": {"head.weight": state["head.weight"]},
        f"{folder}/config.json": CONFIG,
    }


def _deepspeed(point: Point) -> dict[str, object]:
    return {"module": weights(point), "param_shapes": None, "global_steps": point.at, "ds_version": "0.17.0"}


def _megatron(point: Point) -> dict[str, object]:
    rng = [{"np_rng_state": None, "cuda_rng_state": torch.ones(3)}]
    return {
        "iteration": point.at,
        "checkpoint_version": 3.0,
        "model": weights(point),
        "optimizer": ADAM,
        "rng_state": rng,
    }


def _titan(point: Point) -> Dcp:
    train_state = {"step": torch.tensor(point.at, dtype=torch.int32), "ntokens_seen": torch.tensor(9 * point.at)}
    optimizer = {f"state.{name}.exp_avg": tensor for name, tensor in weights(point).items()}
    return Dcp(
        {**weights(point), "optimizer": optimizer, "lr_scheduler": {"last_epoch": 1}, "train_state": train_state}
    )


def _litgpt(point: Point, step: int) -> dict[str, object]:
    return {"model": weights(point), "optimizer": ADAM, "iter_num": 4 * step, "step_count": step, "hparams": {"lr": 1}}


def _nanogpt(point: Point) -> dict[str, object]:
    state = weights(point, "_orig_mod.")
    return {"model": state, "optimizer": ADAM, "model_args": {"n_layer": 2}, "iter_num": point.at, "best_val_loss": 2.5}


def _joeynmt(point: Point) -> dict[str, object]:
    stats = {"steps": point.at, "total_tokens": 90 * point.at, "best_ckpt_iter": 1000, "best_ckpt_score": 30.1}
    return {"model_state": weights(point), "optimizer_state": ADAM, "stats_state": stats, "train_iter_state": None}


def _composer(point: Point) -> dict[str, object]:
    timestamp = {"iteration": 0, "epoch": 0, "batch": point.at, "sample": 8 * point.at, "batch_in_epoch": point.at}
    state = {"model": weights(point), "optimizers": {"AdamW": ADAM}, "timestamp": timestamp, "rank_zero_seed": 1}
    return {"state": state, "rng": [{"python": 1, "torch": torch.ones(4, dtype=torch.uint8)}]}


def _sentences(point: Point) -> Files:
    folder = f"checkpoint-{point.at}"
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    return {**_hf_trainer(point), f"{folder}/modules.json": {}, f"{folder}/1_Pooling/config.json": pooling}


STEPS = (500, 1000, 1500)
LANGUAGE = {
    "fairseq by epoch": Trainer(
        source="facebookresearch/fairseq fairseq/checkpoint_utils.py save_checkpoint",
        save=lambda p: {f"checkpoint{p.at}.pt": _fairseq(p, 700 * p.at, p.at)},
        beside=lambda ps: {
            "checkpoint_best.pt": _fairseq(ps[1], 700 * 9, 9),
            "checkpoint.best_loss_3.4500.pt": _fairseq(ps[1], 700 * 9, 9),
            "checkpoint_last.pt": _fairseq(ps[-1], 700 * 11, 11),
        },
        skipped=("checkpoint_best.pt", "checkpoint.best_loss_3.4500.pt", "checkpoint_last.pt"),
        key="model",
    ),
    "fairseq by epoch and update": Trainer(
        source="facebookresearch/fairseq fairseq/checkpoint_utils.py save_checkpoint",
        at=(500, 1000, 1200, 1500, 2000, 2400),
        save=lambda p: {
            f"checkpoint{p.at // 1200}.pt"
            if p.at % 1200 == 0
            else f"checkpoint_{1 + p.at // 1200}_{p.at}.pt": _fairseq(p, p.at, 1 + p.at // 1200)
        },
        key="model",
    ),
    "Hugging Face Trainer": Trainer(
        source="huggingface/transformers src/transformers/trainer.py _save_checkpoint",
        at=STEPS,
        save=_hf_trainer,
        beside=lambda ps: {
            "model.safetensors": weights(ps[-1]),
            "config.json": CONFIG,
            "training_args.bin": {"lr": 0.1},
        },
        skipped=("model.safetensors",),
    ),
    "axolotl, sharded": Trainer(
        source="axolotl-ai-cloud/axolotl src/axolotl/train.py, transformers Trainer._save_checkpoint",
        at=STEPS,
        save=lambda p: {
            **_sharded(p, f"checkpoint-{p.at}"),
            f"checkpoint-{p.at}/trainer_state.json": {"global_step": p.at},
            f"checkpoint-{p.at}/tokens_state.json": {"total": 1},
        },
        beside=lambda ps: _sharded(ps[-1], "."),
    ),
    "accelerate": Trainer(
        source="huggingface/accelerate src/accelerate/accelerator.py save_state, automatic naming",
        save=lambda p: {
            f"checkpoints/checkpoint_{p.at}/model.safetensors": weights(p),
            f"checkpoints/checkpoint_{p.at}/optimizer.bin": ADAM,
            f"checkpoints/checkpoint_{p.at}/scheduler.bin": {"last_epoch": 1},
            f"checkpoints/checkpoint_{p.at}/random_states_0.pkl": b"rng",
        },
        paths=("checkpoints",),
    ),
    "DeepSpeed": Trainer(
        source="deepspeedai/DeepSpeed deepspeed/runtime/engine.py save_checkpoint",
        at=STEPS,
        save=lambda p: {
            f"global_step{p.at}/mp_rank_00_model_states.pt": _deepspeed(p),
            f"global_step{p.at}/zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": ADAM},
        },
        beside=lambda _: {"latest": "global_step1500", "zero_to_fp32.py": "#!/usr/bin/env python"},
        key="module",
    ),
    "Megatron-LM": Trainer(
        source="NVIDIA/Megatron-LM megatron/training/checkpointing.py save_checkpoint",
        at=STEPS,
        save=lambda p: {f"iter_{p.at:07d}/mp_rank_00/model_optim_rng.pt": _megatron(p)},
        beside=lambda _: {"latest_checkpointed_iteration.txt": "1500"},
        key="model",
    ),
    "torchtitan": Trainer(
        source="pytorch/torchtitan torchtitan/components/checkpointer",
        at=STEPS,
        save=lambda p: {f"checkpoint/step-{p.at}": _titan(p)},
        paths=("checkpoint",),
    ),
    "litgpt": Trainer(
        source="Lightning-AI/litgpt litgpt/pretrain.py save_checkpoint",
        at=STEPS,
        save=lambda p: {
            f"step-{p.at:08d}/lit_model.pth": _litgpt(p, p.at),
            f"step-{p.at:08d}/model_config.yaml": "name: pythia",
        },
        beside=lambda _: {
            "final/lit_model.pth": _litgpt(Point(number=4, at=1700), 1700),
            "final/model_config.yaml": "name: pythia",
        },
        last=("final/lit_model.pth",),
        key="model",
    ),
    "litgpt, by a pattern": Trainer(
        source="Lightning-AI/litgpt litgpt/finetune/full.py",
        at=(8, 9, 10),
        save=lambda p: {f"step-{p.at:06d}/lit_model.pth": _litgpt(p, p.at)},
        beside=lambda _: {"final/lit_model.pth": _litgpt(Point(number=4, at=12), 12)},
        paths=("*/lit_model.pth",),
        last=("final/lit_model.pth",),
        key="model",
    ),
    "nanoGPT": Trainer(
        source="karpathy/nanoGPT train.py, with numbered copies as users make them",
        at=(500, 1000, 1500, 2000),
        save=lambda p: {f"ckpt_{p.at}.pt": _nanogpt(p)},
        beside=lambda ps: {"ckpt.pt": _nanogpt(ps[-1])},
        skipped=("ckpt.pt",),
        key="model",
    ),
    "torchtune": Trainer(
        source="meta-pytorch/torchtune torchtune/training/checkpointing/_checkpointer.py save_checkpoint",
        at=(0, 1, 2),
        save=lambda p: {
            f"epoch_{p.at}/model-00001-of-00001.safetensors": weights(p),
            f"epoch_{p.at}/config.json": CONFIG,
            f"epoch_{p.at}/tokenizer.json": {},
        },
        beside=lambda _: {"recipe_state/recipe_state.pt": {"seed": 1, "optimizer": ADAM, "epochs_run": 3}},
    ),
    "OLMo": Trainer(
        source="allenai/OLMo olmo/train.py _save_checkpoint, olmo/checkpoint.py FullCheckpointer",
        at=STEPS,
        save=lambda p: {
            f"step{p.at}-unsharded/model.pt": weights(p),
            f"step{p.at}-unsharded/optim.pt": ADAM,
            f"step{p.at}-unsharded/train.pt": {"epoch": 0, "global_step": p.at},
            f"step{p.at}-unsharded/config.yaml": "run_name: tiny",
        },
        beside=lambda _: {"latest-unsharded": Link("step1500-unsharded")},
        paths=("*/model.pt",),
        skipped=("latest-unsharded/model.pt",),
    ),
    "OpenNMT-py, both parts": Trainer(
        source="OpenNMT/OpenNMT-py onmt/models/model_saver.py _save",
        at=STEPS,
        save=lambda p: {
            f"demo_step_{p.at}.pt": {"model": weights(p), "generator": other_model(p), "vocab": {}, "optim": ADAM}
        },
        options={"key": ["model", "generator"]},
        key=None,
        names=frozenset([*names("model."), "generator.score.weight"]),
    ),
    "OpenNMT-py": Trainer(
        source="OpenNMT/OpenNMT-py onmt/models/model_saver.py _save",
        at=STEPS,
        save=lambda p: {
            f"demo_step_{p.at}.pt": {"model": weights(p), "generator": other_model(p), "vocab": {}, "optim": ADAM}
        },
        key="model",
        warned=("generator",),
    ),
    "JoeyNMT": Trainer(
        source="joeynmt/joeynmt joeynmt/training.py _save_checkpoint",
        at=STEPS,
        save=lambda p: {f"{p.at}.ckpt": _joeynmt(p)},
        beside=lambda _: {"latest.ckpt": Link("1500.ckpt"), "best.ckpt": Link("1000.ckpt"), "validations.txt": ""},
        skipped=("latest.ckpt", "best.ckpt"),
        key="model_state",
    ),
    "sentence-transformers": Trainer(
        source="huggingface/sentence-transformers sentence_transformers/trainer.py _save",
        at=STEPS,
        save=_sentences,
    ),
    "sentence-transformers with a trained layer": Trainer(
        source="huggingface/sentence-transformers sentence_transformers/models/Dense.py save",
        at=STEPS,
        save=lambda p: {**_sentences(p), f"checkpoint-{p.at}/2_Dense/model.safetensors": other_model(p)},
        warned=("2_Dense",),
    ),
    "RWKV-LM": Trainer(
        source="BlinkDL/RWKV-LM RWKV-v5/src/trainer.py on_train_epoch_end",
        save=lambda p: {f"rwkv-{p.at}.pth": weights(p)},
        beside=lambda _: {
            "rwkv-init.pth": weights(Point(number=0, at=0)),
            "rwkv-final.pth": weights(Point(number=5, at=0)),
        },
        skipped=("rwkv-init.pth", "rwkv-final.pth"),
    ),
    "Composer": Trainer(
        source="mosaicml/composer composer/callbacks/checkpoint_saver.py, composer/core/state.py state_dict",
        at=STEPS,
        save=lambda p: {f"ep0-ba{p.at}-rank0.pt": _composer(p)},
        beside=lambda _: {"latest-rank0.pt": Link("ep0-ba1500-rank0.pt")},
        skipped=("latest-rank0.pt",),
        key="state.model",
    ),
    "Composer, sharded": Trainer(
        source="mosaicml/composer composer/utils/checkpoint.py _save_checkpoint",
        at=STEPS,
        save=lambda p: {f"ep0-ba{p.at}": Dcp({"state": {"model": weights(p), "timestamp": {"batch": p.at}}})},
        key="state.model",
    ),
    "MLX": Trainer(
        source="ml-explore/mlx-lm mlx_lm/tuner/trainer.py train, --fine-tune-type full",
        at=(800, 900, 1000),
        save=lambda p: {f"{p.at:07d}_adapters.safetensors": Safe(weights(p), {})},
        beside=lambda ps: {"adapters.safetensors": Safe(weights(ps[-1]), {}), "adapter_config.json": {"iters": 1000}},
        skipped=("adapters.safetensors",),
    ),
    "Ray Train": Trainer(
        source="ray-project/ray python/ray/train/_internal/storage.py, checkpoint_{index:06d}",
        save=lambda p: {
            f"TorchTrainer_1/checkpoint_{p.at:06d}/model.pt": {"epoch": p.at, "model": weights(p, "module.")}
        },
        beside=lambda _: {"TorchTrainer_1/result.json": "{}"},
        paths=("TorchTrainer_1/checkpoint_*/model.pt",),
        key="model",
    ),
    "NVIDIA BERT": Trainer(
        source="NVIDIA/DeepLearningExamples PyTorch/LanguageModeling/BERT/run_pretraining.py",
        at=STEPS,
        save=lambda p: {
            f"ckpt_{p.at}.pt": {
                "model": weights(p),
                "optimizer": ADAM,
                "master params": list(weights(p).values()),
                "files": [0, "shard.hdf5"],
                "epoch": 0,
            }
        },
        key="model",
    ),
    "AllenNLP": Trainer(
        source="allenai/allennlp allennlp/training/checkpointer.py Checkpointer",
        save=lambda p: {
            f"model_state_e{p.at}_b0.th": weights(p),
            f"training_state_e{p.at}_b0.th": {"epochs_completed": p.at, "optimizer": ADAM},
        },
        beside=lambda ps: {"best.th": weights(ps[1])},
        paths=("model_state_e*_b0.th",),
    ),
    "flair": Trainer(
        source="flairNLP/flair flair/trainers/plugins/functional/checkpoints.py, flair/nn/model.py save",
        save=lambda p: {f"model_epoch_{p.at}.pt": {"state_dict": weights(p), "tag_type": "ner", "__cls__": "Tagger"}},
        beside=lambda ps: {
            "best-model.pt": {"state_dict": weights(ps[1]), "tag_type": "ner", "__cls__": "Tagger"},
            "final-model.pt": {"state_dict": weights(ps[-1]), "tag_type": "ner", "__cls__": "Tagger"},
        },
        skipped=("best-model.pt", "final-model.pt"),
        key="state_dict",
    ),
}
