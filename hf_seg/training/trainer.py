"""`SegTrainer`: transformers' `Trainer` with the study's optimiser and schedule, one loss for all models, and mIoU."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from accelerate.utils.memory import clear_device_cache
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from hf_seg.data import SegData, image_name
from hf_seg.data.geometry import Framing, center_crop, cut, pad, slide
from hf_seg.data.prepared import PreparedPairs
from hf_seg.data.transforms import collate
from hf_seg.models.build import build_image_processor
from hf_seg.problem import Refusal, first
from hf_seg.runs.folder import Run
from hf_seg.scoring.evaluation import Evaluation
from hf_seg.scoring.loss import LossWatch
from hf_seg.scoring.metrics import SecondOpinion
from hf_seg.scoring.native import compare_pipeline, score_native
from hf_seg.scoring.upsampling import upsample, upsampled_argmax
from hf_seg.training.arguments import (
    build_loss,
    build_training_arguments,
    overridden,
    pairs_per_epoch,
    steps_per_epoch,
    use_channels_last,
    use_cuda_graphs,
    use_sync_batch_norm,
)
from hf_seg.training.average import WeightAverage
from hf_seg.training.callbacks import EvaluateEvery, StopWhenAsked, TrainingTime, protect_workers
from hf_seg.training.checkpoints import SealCheckpoints, find_damage, last_checkpoint, load_weights, writing
from hf_seg.training.graphs import GraphedModel
from hf_seg.training.memory import Step, explained, peak_memory
from hf_seg.training.rates import exponential, split_groups
from hf_seg.training.table import TrainingTable

LOGGED = ("loss", "mean_iou", "mean_dice", "mean_accuracy", "overall_accuracy")  # scores logged at each validation
FP16_OVERFLOWS = 9  # tolerated in a row, in steps; after more of them, training makes no progress


class SegTrainer(Trainer):
    """Trains and evaluates one recipe; [`~hf_seg.training.setup.build_trainer`] describes the arguments.

    What it adds to `Trainer`: AdamW with amsgrad, the exponential schedule by epoch, a [`SegLoss`] normalised
    over the global batch, validation every `eval_every_epochs`, channels_last, augmentation and conversion to float of
    whole batches on the device, and evaluation batch by batch into an [`Evaluation`], so that memory does not grow
    with the set.
    """

    def __init__(self, *, run: Run, data: SegData, model: PreTrainedModel, callbacks: Sequence[TrainerCallback] = ()):
        recipe, training = run.recipe, run.recipe.training
        self.run, self.data, self.stop = run, data, StopWhenAsked()
        self.train_transform, self.eval_transform = data.transforms["train"], data.transforms["validation"]
        self.classes = data.spec.class_names, data.spec.ignore_index
        args = build_training_arguments(run, data.spec.num_labels, data.prepared["train"].decodes)
        self.crops = recipe.data.resize == "crop"
        if self.crops:
            data.prepared["train"].seed = training.seed
        self.loss = build_loss(training, data, args.device)
        # in fp16 the scaler skips a step that overflows, so the step spoils no weight
        self.losses = LossWatch(tolerated=FP16_OVERFLOWS * args.gradient_accumulation_steps if args.fp16 else 0)
        self.sync_batch_norm = use_sync_batch_norm(training, args.world_size, args.device)
        if self.sync_batch_norm:
            model = convert_sync_batchnorm(model)  # timm's version, which also knows timm's norm-activation layers
        super().__init__(
            model=model,
            args=args,
            train_dataset=data.prepared["train"],
            eval_dataset=data.prepared["validation"],
            data_collator=collate,
            processing_class=build_image_processor(
                size=recipe.data.size,
                normalize=recipe.data.normalize,
                resize=recipe.data.resize,
                value_range=recipe.data.value_range,
            ),
            compute_loss_func=self.loss,
            compute_metrics=self._add_batch,
            preprocess_logits_for_metrics=self._reduce,
            callbacks=[EvaluateEvery(training.eval_every_epochs), SealCheckpoints(), *callbacks, self.stop],
            optimizer_cls_and_kwargs=(
                torch.optim.AdamW,
                {
                    "lr": args.learning_rate,
                    "betas": (args.adam_beta1, args.adam_beta2),
                    "eps": args.adam_epsilon,
                    "amsgrad": training.amsgrad,
                    "fused": args.device.type in ("cuda", "cpu"),
                },
            ),
        )
        self.precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        for printer in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):  # Trainer has added one of the two
            self.remove_callback(printer)
        self.table = TrainingTable(self)
        self.add_callback(self.table)
        self.framing = Framing.of(self.processing_class)
        if use_channels_last(training, args.device):
            # the layout of the weights decides that of the convolutions; the inputs need no conversion
            model.to(memory_format=torch.channels_last)
        self.graphs = None
        if use_cuda_graphs(training, args.world_size, args.device):
            self.graphs = GraphedModel(model, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None)
        self.average: WeightAverage | None = None

    # -- training ------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.table.close()

    def _run_epoch(self, *args, **kwargs) -> None:
        if not self.control.should_training_stop:  # it is set when a resumed training had stopped early
            super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            split_groups(super().create_optimizer(model), self.model, self.run.recipe.training)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the study's exponential schedule, which `SchedulerType` lacks; any other comes from transformers."""
        training, warmup = self.run.recipe.training, self.args.get_warmup_steps(num_training_steps)
        if training.lr_scheduler_type != "exponential":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            factor = exponential(training, steps_per_epoch(training, len(self.train_dataset)), warmup)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, *args, **kwargs):
        graphed = self.graphs is not None and model.training
        return super().compute_loss(self.graphs if graphed else model, inputs, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        # augmented before the labels are counted, since a crop changes their number
        prepared = [self._prepare_inputs(batch) for batch in itertools.islice(epoch_iterator, num_batches)]
        self._images = [batch["index"] for batch in prepared]
        batches = [self.train_transform.finish(batch, self._generator(part)) for part, batch in enumerate(prepared)]
        return batches, self._get_num_items_in_batch(batches, device)

    def _generator(self, part: int) -> torch.Generator:
        """The random generator for augmenting one part of a step; a resumed run draws the same numbers."""
        place = [self.args.seed, self.args.process_index, self.state.global_step, part]
        (seed,) = np.random.SeedSequence(place).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed))

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        with self._explained("training"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.add(loss, (self.state.global_step, self._images))
        self.check_losses()
        return loss

    def try_step(self, images: int) -> list[str]:
        """Run the forward and backward pass of a step on that many images, in this process alone, without changing the
        weights. Return the names of the trainable parameters that got no gradient."""
        if self.args.activation_checkpointing:  # as `train` does
            options = dict(self.args.activation_checkpointing_kwargs or {})
            layers = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
            self.model.activation_checkpointing_enable(options or None, **layers)
        if not self.place_model_on_device:  # not possible: the model is divided over the ranks when training begins
            return []
        self.model.zero_grad()
        pairs = self.train_dataset.__getitems__([index % len(self.train_dataset) for index in range(images)])
        batch = self.train_transform.finish(self._prepare_inputs(pairs), self._generator(0))
        with self._explained("training"):
            super().training_step(self.model, batch)
        return [name for name, value in self.model.named_parameters() if value.requires_grad and value.grad is None]

    def _explained(self, step: Step) -> AbstractContextManager[None]:
        return explained(self.args, self.run.recipe.data.size, step)

    def check_losses(self, wait: bool = False) -> None:
        """Refuse to continue when a loss is not finite, since the weights are useless from that step on."""
        if (found := self.losses.first_bad(wait)) is None:
            return
        value, (step, images) = found
        indices = torch.cat(images).tolist()
        names = first((image_name("train", self.data.splits.get("train"), index) for index in indices), 10)
        last = last_checkpoint(self.run.folder)
        kept = f"The last checkpoint before it is {last}" if last else "There is no checkpoint before it"
        what = f"the training loss is {value} at step {step + 1}; its batch on this process is {names}. {kept}"
        remedy = (
            "Lower training.learning_rate, or set training.bf16 and fp16 to false, and pass --overwrite; if it is "
            "always the same images, check them"
        )
        raise Refusal(self.run.folder, what, remedy, code="loss")

    def _save_checkpoint(self, model, trial) -> None:
        self.check_losses(wait=True)
        with writing(self.run.folder, self.state.global_step) as folder:
            if self.average is not None and self.args.should_save:
                self.average.save_raw(self.model, folder)
            with self._averaged(), overridden(self.args, "save_total_limit", None):  # SealCheckpoints removes old ones
                super()._save_checkpoint(model, trial)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        # Trainer counts labels other than -100; here labels are pixels, and those of `ignore_index` are ignored
        if not batch_samples:
            return None
        counts = sum(self.loss.count(batch["labels"]) for batch in batch_samples).to(device)
        return self.accelerator.reduce(counts, "sum")

    # Trainer reads model.safetensors by tensor name, not strictly. transformers 5 saves SegFormer under the names of
    # its Hub checkpoints, which its modules no longer have, so nothing would be loaded: a resumed run would continue
    # from random weights, and the last model would be taken for the best. `from_pretrained` knows both sets of names.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            return self.average.load(self.model, Path(resume_from_checkpoint))
        load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        damage = find_damage(Path(self.state.best_model_checkpoint))
        if damage:
            what, remedy = f"the best checkpoint is damaged: {damage}", "pass --overwrite to train the run again"
            raise Refusal(self.state.best_model_checkpoint, what, remedy, code="checkpoint")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        load_weights(self.model, self.state.best_model_checkpoint)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        if eval_dataset not in (None, self.eval_dataset):  # Trainer may return the cached loader of validation
            return self.get_test_dataloader(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def _get_train_sampler(self, train_dataset=None) -> RandomSampler:
        pairs = pairs_per_epoch(self.run.recipe.training, len(self.train_dataset))
        return RandomSampler(self.train_dataset, num_samples=pairs)

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        with overridden(self.args, "dataloader_drop_last", False):  # the sampler drops pairs, and only in training
            loader = super()._get_dataloader(*args, **kwargs)
        protect_workers(getattr(loader, "base_dataloader", loader))  # accelerate's loaders contain torch's
        return loader

    def evaluate(self, *args, **kwargs):
        with self._averaged():
            if self.place_model_on_device:  # all ranks get the batch-norm statistics of the first, as a checkpoint has
                broadcast([buffer for buffer in self.model.buffers() if buffer.dim() == 1])
            return super().evaluate(*args, **kwargs)

    def _averaged(self) -> AbstractContextManager[None]:
        """Give the model the average, if there is one, while the block runs. After training it already has it."""
        return self.average.placed_in(self.model) if self.average is not None and self.is_in_train else nullcontext()

    def validate(self) -> dict[str, Any]:
        """Score the validation set with the current model; return the scores of [`Evaluation.compute`]."""
        self.evaluate(metric_key_prefix="validation")
        return self.scores

    def test(self) -> dict[str, Any]:
        """Score the test set thoroughly, with `evaluate`'s own `mean_iou` as second opinion. Return the scores of
        [`Evaluation.compute`], and in the main process also `native` and `native_per_image`, see [`score_native`]."""
        prepared = self.data.prepared["test"]
        self.evaluate(prepared, metric_key_prefix="test")
        if self.is_world_process_zero():
            with self._explained("evaluation"):
                native = self._score_native(prepared)
            self.scores |= {"native_per_image": native.pop("per_image"), "native": native}
        return self.scores

    def _score_native(self, prepared: PreparedPairs) -> dict[str, Any]:
        """Score the test set at the pictures' own size; with crops, these are the test scores themselves."""
        test, transform, native = self.data.splits["test"], self.data.transforms["test"], {"ceilings": {}}
        if self.crops:
            native |= {key: self.scores[key] for key in ("mean_iou", "per_category_iou", "per_image")}
        else:
            sizes = [tuple(side // part for side in transform.size) for part in (1, 2, 4, 8)]
            batch = self.args.per_device_eval_batch_size
            native = score_native(self.predict_logits, test, prepared, transform, sizes, batch)
        if transform.resize != "stretch" and isinstance(self.model, PreTrainedModel):  # not for `hf-seg evaluate`
            native["pipeline"] = compare_pipeline(self.predict_logits, native["per_image"], test, prepared, transform)
        return native

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self.eval_transform.finish(self._prepare_inputs(inputs))
        labels, scores = inputs["labels"], self.picture_scores(inputs["pixel_values"])
        if not self.crops:  # no loss: `Evaluation` computes its own cross-entropy
            return None, scores, labels
        reduced = self.evaluation.reduce_logits(scores, labels)
        # pad masks to the same size on all ranks; the padding is ignored
        widen = partial(self.accelerator.pad_across_processes, pad_index=self.data.spec.ignore_index)
        ids, labels = (widen(widen(values, dim=1), dim=2) for values in (reduced[0], labels))
        return None, (ids, *reduced[1:]), labels

    def picture_scores(self, pixel_values: Tensor) -> Tensor:
        """Map `pixel_values` `(batch, 3, H, W)` to the scores that pictures are segmented by, `(batch, C, h, w)`.
        They are the logits; or with crops (batch of 1) the logarithms of probabilities blended from windows, at the
        picture's own size."""
        if not self.crops:
            return self.predict_logits(pixel_values)
        framing, batch = self.framing, self.args.per_device_train_batch_size
        window, picture = framing.size, pixel_values.shape[-2:]
        framed = pad(pixel_values[0], framing.frame(picture), framing.black)

        def probabilities(windows: Tensor) -> Tensor:
            return upsample(self.predict_logits(windows), window).softmax(dim=1)

        blended = torch.cat(list(slide(framed, window, batch, probabilities)), dim=1)
        blended = cut(blended, framing.box(picture))[None]
        return blended.clamp(min=torch.finfo(blended.dtype).tiny).log()

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        opinion, thorough = None, metric_key_prefix == "test"
        if thorough and self.is_world_process_zero():
            opinion = SecondOpinion(self.data.spec.num_labels, self.classes[1], self.run.mean_iou_script)
        self.evaluation = Evaluation(*self.classes, thorough=thorough, second_opinion=opinion)
        with self._explained("evaluation"):
            return super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)

    def _reduce(self, logits: Any, labels: Tensor) -> tuple[Tensor, ...]:
        return logits if self.crops else self.evaluation.reduce_logits(logits, labels)

    def _add_batch(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        self.evaluation.add_batch(batch)
        if not compute_result:
            return {}
        self.scores = self.evaluation.compute()
        return {key: self.scores[key] for key in LOGGED}

    @torch.no_grad()
    def predict_logits(self, pixel_values: Tensor) -> Tensor:
        """Logits `(batch, C, h, w)` of `pixel_values` `(batch, 3, height, width)`, on the device, as in evaluation."""
        with self.accelerator.autocast():
            return self.model.eval()(pixel_values=pixel_values.to(self.args.device)).logits

    def sample(self, split: str = "test", count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        """Return evenly spaced images of a split with their predictions, for display: `pixel_values` in [0, 1] of
        shape `(count, 3, height, width)`, labels and predictions of shape `(count, height, width)`, on the CPU."""
        prepared = self.data.prepared[split]
        count = min(count, len(prepared))
        indices = [index * len(prepared) // count for index in range(count)]
        pairs = [prepared.__getitems__([index]) for index in indices]
        if self.crops:  # the middle of each picture
            size, nothing = self.run.recipe.data.size, {"pixel_values": 0, "labels": self.data.spec.ignore_index}
            pairs = [{key: center_crop(pair[key], size, fill) for key, fill in nothing.items()} for pair in pairs]
        batch = {key: torch.cat([pair[key] for pair in pairs]) for key in ("pixel_values", "labels")}
        batch = self.eval_transform.finish(batch)
        logits = self.predict_logits(batch["pixel_values"])
        predictions = upsampled_argmax(logits, batch["labels"].shape[-2:])[0].cpu()
        processor, pixel_values = self.processing_class, batch["pixel_values"]
        if processor.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
            pixel_values = (pixel_values * std + mean).clamp(0, 1)
        return pixel_values, batch["labels"], predictions

    def summary(self) -> dict[str, Any]:
        """Build the `train` section of `results.json` for a training that has ended."""
        history, weights, seconds = self.state.log_history, self.loss.class_weights, TrainingTime.of(self.state)
        images = self.state.epoch * pairs_per_epoch(self.run.recipe.training, len(self.train_dataset))
        return {
            "epochs": self.state.epoch,
            "steps": self.state.global_step,
            "stopped_early": self.state.global_step < self.state.max_steps,
            "best_step": self.state.best_global_step,
            "seconds": seconds,
            "images_per_second": images / seconds,
            "world_size": self.args.world_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "precision": self.precision,
            "channels_last": use_channels_last(self.run.recipe.training, self.args.device),
            "sync_batch_norm": self.sync_batch_norm,
            "compile": self.args.torch_compile,
            "cuda_graphs": self.graphs is not None,
            "seed": self.args.seed,
            "class_weights": None if weights is None else dict(zip(self.classes[0], weights.tolist(), strict=True)),
            "history": [entry for entry in history if "loss" in entry or "eval_loss" in entry],
            "peak_memory_mb": peak_memory(self.args.device),
        }

    def release(self) -> None:
        """Free the device's memory, so that the next run of the launch starts as if it were the first."""
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.average = self.graphs = self.optimizer = self.lr_scheduler = None
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.remove_callback(WeightAverage)
        clear_device_cache(garbage_collection=True)
