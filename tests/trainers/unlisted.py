"""Layouts of research code that break the usual rules: each teaches one."""

from __future__ import annotations

import torch

from tests.trainers.files import ADAM, Files, Link, Point, Trainer, names, other_model, weights


def _cosyvoice(point: Point, **counters: int) -> dict[str, object]:
    return {**weights(point), **counters}


def _deepmd(point: Point) -> dict[str, object]:
    extra = {"model_params": {"type_map": ["O", "H"]}, "train_infos": {"lr": 1e-3, "step": point.at}}
    return {"model": {**weights(point), "_extra_state": extra}, "optimizer": ADAM}


def _nnunet(state: dict[str, torch.Tensor], epoch: int) -> dict[str, object]:
    counters = {"current_epoch": epoch, "_best_ema": 0.87, "trainer_name": "nnUNetTrainer"}
    return {"network_weights": state, "optimizer_state": ADAM, "grad_scaler_state": {"scale": 1.0}, **counters}


def _colossal(point: Point) -> Files:
    folder, state = f"epoch-0_step-{point.at}", weights(point)
    files = {name: f"pytorch_model-0000{1 + (name == 'head.weight')}.bin" for name in state}
    return {
        f"{folder}/modeling/pytorch_model.bin.index.json": {"metadata": {}, "weight_map": files},
        f"{folder}/modeling/pytorch_model-00001.bin": {n: t for n, t in state.items() if n != "head.weight"},
        f"{folder}/modeling/pytorch_model-00002.bin": {"head.weight": state["head.weight"]},
        f"{folder}/optimizer/pytorch_optim-00001.bin": ADAM["state"],
        f"{folder}/running_states.json": {"epoch": 0, "step": point.at, "sample_start_index": 8 * point.at},
    }


def _rl_games(point: Point) -> dict[str, object]:
    counters = {"epoch": point.at, "frame": 4096 * point.at, "last_mean_rewards": 1.5}
    return {"model": weights(point, "a2c_network."), "optimizer": ADAM, **counters}


def _fairseq2(point: Point) -> Files:
    folder = f"checkpoints/step_{point.at}"
    return {
        f"{folder}/model/pp_00/tp_00/sdp_00.pt": weights(point),
        f"{folder}/optimizer/pp_00/tp_00/sdp_00.pt": ADAM,
        f"{folder}/trainer/rank_00.pt": {"step_nr": point.at},
        f"{folder}/data_reader/dp_00.pt": {},
    }


def _folds(point: Point) -> Files:
    state = {"body.weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(100 + point.at))}
    return {f"fold_{point.at}/checkpoint_final.pth": _nnunet(state, 1000)}


STEPS = (500, 1000, 1500)
UNLISTED = {
    "RAFT: the number first, the end without one": Trainer(
        source="princeton-vl/RAFT train.py",
        at=(5000, 10000, 15000),
        save=lambda p: {f"checkpoints/{p.at}_raft-things.pth": weights(p, "module.")},
        beside=lambda _: {"checkpoints/raft-things.pth": weights(Point(number=4, at=16000), "module.")},
        paths=("checkpoints",),
        skipped=("checkpoints/raft-things.pth",),
    ),
    "CycleGAN: two models in one folder": Trainer(
        source="junyanz/pytorch-CycleGAN-and-pix2pix models/base_model.py save_networks",
        at=(5, 10, 15),
        save=lambda p: {f"{p.at}_net_G.pth": weights(p), f"{p.at}_net_D.pth": other_model(p)},
        beside=lambda ps: {"latest_net_G.pth": weights(ps[-1]), "latest_net_D.pth": other_model(ps[-1])},
        refused=(r"\*_net_G\.pth", r"\*_net_D\.pth"),
    ),
    "CycleGAN: one of the two": Trainer(
        source="junyanz/pytorch-CycleGAN-and-pix2pix models/base_model.py save_networks",
        at=(5, 10, 15),
        save=lambda p: {f"{p.at}_net_G.pth": weights(p), f"{p.at}_net_D.pth": other_model(p)},
        beside=lambda ps: {"latest_net_G.pth": weights(ps[-1]), "latest_net_D.pth": other_model(ps[-1])},
        paths=("[0-9]*_net_G.pth",),
    ),
    "Implicitron: the optimizer under the checkpoint's name": Trainer(
        source="facebookresearch/pytorch3d pytorch3d/implicitron/tools/model_io.py save_model",
        save=lambda p: {
            f"model_epoch_{p.at:08d}.pth": weights(p),
            f"model_epoch_{p.at:08d}_opt.pth": ADAM,
            f"model_epoch_{p.at:08d}_stats.jgz": b"stats",
        },
        skipped=tuple(f"model_epoch_{n:08d}_opt.pth" for n in (8, 9, 10, 11)),
    ),
    "CosyVoice: the step among the tensors, two kinds of names": Trainer(
        source="FunAudioLLM/CosyVoice cosyvoice/utils/train_utils.py save_model, cosyvoice/utils/executor.py cv",
        at=(1000, 1300, 2000, 2600),
        save=lambda p: {
            f"epoch_{(p.at - 1) // 1300}_{'whole' if p.at % 1300 == 0 else f'step_{p.at}'}.pt": _cosyvoice(
                p, epoch=(p.at - 1) // 1300, step=p.at - bool(p.at % 1300)
            )
        },
        beside=lambda _: {"init.pt": _cosyvoice(Point(number=0, at=0), epoch=-1, step=0)},
        skipped=("init.pt",),
    ),
    "fairseq2: words for parts in a run on one GPU": Trainer(
        source="facebookresearch/fairseq2 src/fairseq2/checkpoint/manager.py",
        at=STEPS,
        save=_fairseq2,
        paths=("checkpoints/step_*/model/pp_00/tp_00/sdp_00.pt",),
    ),
    "fairseq2: ranks": Trainer(
        source="facebookresearch/fairseq2 src/fairseq2/checkpoint/manager.py",
        at=(500,),
        save=lambda p: {
            f"checkpoints/step_500/model/pp_00/tp_00/sdp_0{n}.pt": weights(Point(number=n, at=p.at)) for n in (0, 1)
        },
        paths=("checkpoints/step_*/model/pp_00/tp_00/*.pt",),
        refused=("sdp_0|part|rank|shard",),
    ),
    "metaseq: parts behind the step": Trainer(
        source="facebookresearch/metaseq metaseq/checkpoint_utils.py",
        at=(1000, 2000),
        save=lambda p: {
            f"checkpoint_{p.at}-model_part-{n}-shard0.pt": {"model": weights(Point(number=n, at=p.at))} for n in (0, 1)
        },
        refused=("part",),
    ),
    "LLaVA: a projector as the only weights": Trainer(
        source="haotian-liu/LLaVA llava/train/llava_trainer.py _save_checkpoint",
        at=STEPS,
        save=lambda p: {
            f"checkpoint-{p.at}/mm_projector.bin": weights(p, "model.mm_projector."),
            f"checkpoint-{p.at}/config.json": {"model_type": "llava"},
        },
        beside=lambda ps: {"mm_projector.bin": weights(ps[-1], "model.mm_projector."), "config.json": {}},
        names=names("model.mm_projector."),
    ),
    "nnU-Net: folds are runs": Trainer(
        source="MIC-DKFZ/nnUNet nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py save_checkpoint",
        at=(0, 1, 2, 3, 4),
        save=_folds,
        paths=("fold_*/checkpoint_final.pth",),
        key="network_weights",
        names=frozenset({"body.weight"}),
        warned=("unrelated",),
        allowed=("order-doubtful",),
    ),
    "nnU-Net: one fold": Trainer(
        source="MIC-DKFZ/nnUNet nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py save_checkpoint",
        at=(850, 1000),
        save=lambda p: {f"checkpoint_{'best' if p.number == 1 else 'final'}.pth": _nnunet(weights(p), p.at)},
        key="network_weights",
    ),
    "rl_games: every name begins with last, and ends with a reward": Trainer(
        source="Denys88/rl_games rl_games/common/a2c_common.py",
        at=(50, 100, 150),
        save=lambda p: {f"nn/last_Ant_ep_{p.at}_rew_{9000.5 - p.at * 50}.pth": _rl_games(p)},
        beside=lambda ps: {"nn/Ant.pth": _rl_games(ps[1])},
        skipped=("nn/Ant.pth",),
        paths=("nn",),
        key="model",
        names=names("a2c_network."),
    ),
    "DeePMD: a name that ends like a suffix": Trainer(
        source="deepmodeling/deepmd-kit deepmd/pt/train/training.py save_model",
        at=STEPS,
        save=lambda p: {f"model.ckpt-{p.at}.pt": _deepmd(p)},
        beside=lambda _: {"model.ckpt.pt": Link("model.ckpt-1500.pt"), "checkpoint": "model.ckpt-1500.pt"},
        skipped=("model.ckpt.pt",),
        key="model",
    ),
    "Colossal-AI: shards without a count, one level deeper": Trainer(
        source="hpcaitech/ColossalAI applications/Colossal-LLaMA/colossal_llama/utils/ckpt_io.py save_checkpoint",
        at=STEPS,
        save=_colossal,
    ),
    "Colossal-AI, by a pattern": Trainer(
        source="hpcaitech/ColossalAI applications/Colossal-LLaMA/colossal_llama/utils/ckpt_io.py save_checkpoint",
        at=STEPS,
        save=_colossal,
        paths=("*/modeling",),
    ),
}
