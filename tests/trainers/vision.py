"""Trainers of detectors, classifiers and self-supervised vision models."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.trainers.files import ADAM, Detector, Link, Point, Trainer, average, names, weights


def _detectron2(point: Point) -> dict[str, object]:
    return {"model": weights(point), "optimizer": ADAM, "scheduler": {"last_epoch": point.at}, "iteration": point.at}


def _mmengine(point: Point) -> dict[str, object]:
    meta = {"epoch": point.at, "iter": 500 * point.at, "mmengine_version": "0.10.7", "seed": 1}
    schedulers = [{"last_step": point.at}]
    return {"meta": meta, "state_dict": weights(point), "optimizer": ADAM, "param_schedulers": schedulers}


def _timm(point: Point) -> dict[str, object]:
    return {"epoch": point.at, "arch": "vit", "state_dict": weights(point), "optimizer": ADAM, "version": 2}


def _yolo(point: Point) -> dict[str, object]:
    raw, ema = Detector(weights(point)), Detector(average(point))
    return {"epoch": point.at, "best_fitness": 0.5, "model": raw, "ema": ema, "updates": 90 * point.at}


def _ultralytics(point: Point) -> dict[str, object]:
    return {"epoch": point.at, "model": None, "ema": Detector(average(point)), "updates": 90 * point.at}


def _epoch(point: Point) -> dict[str, object]:
    return {"model": weights(point), "optimizer": ADAM, "lr_scheduler": {"last_epoch": 1}, "epoch": point.at}


def _sam2(point: Point) -> dict[str, object]:
    counters = {"epoch": point.at, "steps": {"train": 400 * point.at, "val": 0}, "time_elapsed": 9.5}
    return {"model": weights(point), "optimizer": ADAM, "loss": {"all": {}}, **counters, "best_meter_values": {}}


def _averaged(point: Point) -> dict[str, object]:
    return {"steps": torch.tensor(point.at), **average(point, "module.")}


def _moco(point: Point) -> dict[str, object]:
    return {"epoch": point.at + 1, "arch": "resnet50", "state_dict": weights(point, "module."), "optimizer": ADAM}


def _dino(point: Point) -> dict[str, object]:
    student, teacher = weights(point, "module.backbone."), average(point, "backbone.")
    return {"student": student, "teacher": teacher, "optimizer": ADAM, "epoch": point.at, "dino_loss": {"center": 0.1}}


VISION = {
    "detectron2": Trainer(
        source="facebookresearch/fvcore fvcore/common/checkpoint.py PeriodicCheckpointer.step",
        at=(4999, 9999, 14999),
        save=lambda p: {f"model_{p.at:07d}.pth": _detectron2(p)},
        beside=lambda ps: {"model_final.pth": _detectron2(ps[-1]), "last_checkpoint": "model_final.pth"},
        skipped=("model_final.pth",),
        key="model",
    ),
    "detectron2, an end between two saves": Trainer(
        source="facebookresearch/fvcore fvcore/common/checkpoint.py PeriodicCheckpointer.step",
        at=(4999, 9999, 14999),
        save=lambda p: {f"model_{p.at:07d}.pth": _detectron2(p)},
        beside=lambda _: {"model_final.pth": _detectron2(Point(number=4, at=17999))},
        last=("model_final.pth",),
        key="model",
    ),
    "maskrcnn-benchmark": Trainer(
        source="facebookresearch/maskrcnn-benchmark maskrcnn_benchmark/engine/trainer.py do_train",
        at=(2500, 5000, 7500, 10000),
        save=lambda p: {f"model_{p.at:07d}.pth": {**_detectron2(p), "model": weights(p, "module.")}},
        beside=lambda ps: {"model_final.pth": {**_detectron2(ps[-1]), "model": weights(ps[-1], "module.")}},
        skipped=("model_final.pth",),
        key="model",
    ),
    "mmengine by epoch": Trainer(
        source="open-mmlab/mmengine mmengine/hooks/checkpoint_hook.py CheckpointHook",
        save=lambda p: {f"epoch_{p.at}.pth": _mmengine(p)},
        beside=lambda ps: {"best_coco_bbox_mAP_epoch_9.pth": _mmengine(ps[1]), "last_checkpoint": "run/epoch_11.pth"},
        skipped=("best_coco_bbox_mAP_epoch_9.pth",),
        key="state_dict",
    ),
    "mmengine by iteration with EMAHook": Trainer(
        source="open-mmlab/mmengine mmengine/hooks/ema_hook.py before_save_checkpoint",
        at=(8000, 16000, 80000, 160000),
        save=lambda p: {f"iter_{p.at}.pth": {**_mmengine(p), "ema_state_dict": _averaged(p)}},
        key="state_dict",
        warned=("ema_state_dict",),
    ),
    "timm": Trainer(
        source="huggingface/pytorch-image-models timm/utils/checkpoint_saver.py CheckpointSaver",
        save=lambda p: {f"checkpoint-{p.at}.pth.tar": _timm(p)},
        beside=lambda _: {
            "last.pth.tar": Link("checkpoint-11.pth.tar", hard=True),
            "model_best.pth.tar": Link("checkpoint-9.pth.tar", hard=True),
            "summary.csv": "epoch,loss",
        },
        skipped=("last.pth.tar", "model_best.pth.tar"),
        key="state_dict",
    ),
    "timm with EMA": Trainer(
        source="huggingface/pytorch-image-models timm/utils/checkpoint_saver.py CheckpointSaver._save",
        save=lambda p: {f"checkpoint-{p.at}.pth.tar": {**_timm(p), "state_dict_ema": average(p)}},
        beside=lambda ps: {"last.pth.tar": {**_timm(ps[-1]), "state_dict_ema": average(ps[-1])}},
        skipped=("last.pth.tar",),
        key="state_dict",
    ),
    "ultralytics": Trainer(
        source="ultralytics/ultralytics ultralytics/engine/trainer.py BaseTrainer.save_model",
        save=lambda p: {f"weights/epoch{p.at}.pt": _ultralytics(p)},
        beside=lambda ps: {"weights/best.pt": _ultralytics(ps[1]), "weights/last.pt": _ultralytics(ps[-1])},
        paths=("weights",),
        skipped=("weights/best.pt", "weights/last.pt"),
        key="ema",
        warned=("ema",),
    ),
    "YOLOv5": Trainer(
        source="ultralytics/yolov5 train.py",
        save=lambda p: {f"epoch{p.at}.pt": _yolo(p)},
        beside=lambda ps: {"best.pt": _yolo(ps[1]), "last.pt": _yolo(ps[-1])},
        skipped=("best.pt", "last.pt"),
        key="model",
    ),
    "YOLOv7": Trainer(
        source="WongKinYiu/yolov7 train.py",
        at=(0, 24, 49, 295, 296),
        save=lambda p: {f"epoch_{p.at:03d}.pt": _yolo(p)},
        beside=lambda ps: {
            "init.pt": Detector(weights(Point(number=0, at=0))),
            "best.pt": _yolo(ps[2]),
            "best_049.pt": _yolo(ps[2]),
            "last.pt": _yolo(ps[-1]),
        },
        skipped=("init.pt", "best.pt", "best_049.pt", "last.pt"),
        key="model",
    ),
    "YOLOv9": Trainer(
        source="WongKinYiu/yolov9 train_dual.py",
        save=lambda p: {f"epoch{p.at}.pt": _yolo(p)},
        beside=lambda ps: {"last.pt": _yolo(ps[-1])},
        skipped=("last.pt",),
        key="model",
    ),
    "DETR": Trainer(
        source="facebookresearch/detr main.py",
        at=(99, 199, 299),
        save=lambda p: {f"checkpoint{p.at:04}.pth": _epoch(p)},
        beside=lambda ps: {"checkpoint.pth": _epoch(ps[-1]), "eval/latest.pth": {"precision": 0.5}},
        skipped=("checkpoint.pth",),
        key="model",
    ),
    "MAE": Trainer(
        source="facebookresearch/mae util/misc.py save_model",
        at=(0, 20, 40, 100),
        save=lambda p: {f"checkpoint-{p.at}.pth": {**_epoch(p), "scaler": {"scale": 65536.0}}},
        key="model",
    ),
    "ConvNeXt with EMA": Trainer(
        source="facebookresearch/ConvNeXt utils.py save_model",
        save=lambda p: {f"checkpoint-{p.at}.pth": {**_epoch(p), "model_ema": average(p)}},
        beside=lambda ps: {
            "checkpoint-best.pth": {**_epoch(ps[1]), "epoch": "best", "model_ema": average(ps[1])},
            "checkpoint-best-ema.pth": {**_epoch(ps[2]), "epoch": "best-ema", "model_ema": average(ps[2])},
        },
        skipped=("checkpoint-best.pth", "checkpoint-best-ema.pth"),
        key="model",
    ),
    "Swin": Trainer(
        source="microsoft/Swin-Transformer utils.py save_checkpoint",
        save=lambda p: {f"ckpt_epoch_{p.at}.pth": {**_epoch(p), "max_accuracy": 81.2, "scaler": {"scale": 65536.0}}},
        key="model",
    ),
    "MoCo": Trainer(
        source="facebookresearch/moco main_moco.py save_checkpoint",
        at=(0, 99, 199),
        save=lambda p: {f"checkpoint_{p.at:04d}.pth.tar": _moco(p)},
        key="state_dict",
    ),
    "DINO, the teacher": Trainer(
        source="facebookresearch/dino main_dino.py",
        at=(0, 20, 40),
        save=lambda p: {f"checkpoint{p.at:04}.pth": _dino(p)},
        beside=lambda ps: {"checkpoint.pth": _dino(ps[-1])},
        options={"key": "teacher"},
        skipped=("checkpoint.pth",),
        key="teacher",
        names=names("backbone."),
    ),
    "DINO": Trainer(
        source="facebookresearch/dino main_dino.py",
        at=(0, 20, 40),
        save=lambda p: {f"checkpoint{p.at:04}.pth": _dino(p)},
        refused=("student", "teacher", "--key|key="),
    ),
    "DINOv2 on one GPU": Trainer(
        source="facebookresearch/dinov2 dinov2/fsdp/__init__.py FSDPCheckpointer.save",
        at=(1249, 2499, 3749),
        save=lambda p: {f"model_{p.at:07d}.rank_0.pth": _detectron2(p)},
        beside=lambda ps: {"model_final.rank_0.pth": _detectron2(ps[-1]), "last_checkpoint.rank_0": "x"},
        skipped=("model_final.rank_0.pth",),
        key="model",
    ),
    "DINOv2 on two GPUs": Trainer(
        source="facebookresearch/dinov2 dinov2/fsdp/__init__.py FSDPCheckpointer.save",
        at=(1249,),
        save=lambda p: {
            f"model_{p.at:07d}.rank_{rank}.pth": _detectron2(replace(p, number=p.number + rank)) for rank in (0, 1)
        },
        refused=("rank",),
    ),
    "torchvision references": Trainer(
        source="pytorch/vision references/classification/train.py",
        save=lambda p: {f"model_{p.at}.pth": {**_epoch(p), "args": {"lr": 0.1}}},
        beside=lambda ps: {"checkpoint.pth": {**_epoch(ps[-1]), "args": {"lr": 0.1}}},
        skipped=("checkpoint.pth",),
        key="model",
    ),
    "SAM 2": Trainer(
        source="facebookresearch/sam2 training/trainer.py save_checkpoint",
        save=lambda p: {f"checkpoint_{p.at}.pt": _sam2(p)},
        beside=lambda ps: {"checkpoint.pt": _sam2(ps[-1])},
        skipped=("checkpoint.pt",),
        key="model",
    ),
    "semseg": Trainer(
        source="hszhao/semseg tool/train.py",
        save=lambda p: {
            f"train_epoch_{p.at}.pth": {"epoch": p.at, "state_dict": weights(p, "module."), "optimizer": ADAM}
        },
        key="state_dict",
    ),
    "MONAI": Trainer(
        source="Project-MONAI/MONAI monai/handlers/checkpoint_saver.py CheckpointSaver",
        save=lambda p: {f"net_epoch={p.at}.pt": weights(p)},
        beside=lambda ps: {"net_final_iteration=1100.pt": weights(ps[-1]), "net_key_metric=0.9387.pt": weights(ps[1])},
        skipped=("net_final_iteration=1100.pt", "net_key_metric=0.9387.pt"),
    ),
    "MONAI with an optimizer": Trainer(
        source="Project-MONAI/MONAI monai/handlers/checkpoint_saver.py CheckpointSaver",
        at=(800, 900, 1000, 1100),
        save=lambda p: {f"checkpoint_iteration={p.at}.pt": {"net": weights(p), "opt": ADAM}},
        beside=lambda ps: {"checkpoint_final_iteration=1100.pt": {"net": weights(ps[-1]), "opt": ADAM}},
        skipped=("checkpoint_final_iteration=1100.pt",),
        key="net",
    ),
}
