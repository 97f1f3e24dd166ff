"""`Elastic` inside the frameworks that people train with, each under the same contract."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from rightbatch.testing import IntegrationContract, inject_out_of_memory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXAMPLES, BATCH, EPOCHS = 40, 12, 2


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(EXAMPLES, 6, generator=generator)
    return TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class TestPlain(IntegrationContract):
    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        step = rb.Elastic(model, optimizer, loss, micro_batch_size=micro_batch_size)
        for _ in range(EPOCHS):
            for batch in DataLoader(data(), BATCH):
                step(batch)
            step.evaluate(data().tensors)
        return list(model.state_dict().values())


class TestOurOwnLoop(IntegrationContract):
    def train(self, folder: Path, micro_batch_size: int, **options: Any) -> Sequence[Tensor]:
        rb.train(
            self.workload,
            out=folder / "run",
            batch=BATCH,
            micro_batch=micro_batch_size,
            epochs=EPOCHS,
            device="cpu",
            progress=False,
            **options,
        )
        return list(torch.load(folder / "run" / "model.pt").values())

    def resumed(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        folder = folder / "ended"
        folder.mkdir()
        self.left = 6
        with pytest.raises(rb.WorkloadError, match="the power went"):
            self.train(folder, micro_batch_size, checkpoint_seconds=0)
        self.left = None
        return self.train(folder, micro_batch_size, resume=True)

    left: int | None = None

    def workload(self) -> rb.Workload:
        model = network()

        def failing(model: nn.Module, batch: Any) -> Tensor:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise RuntimeError("the power went")
            return loss(model, batch)

        return rb.Workload(
            model=model,
            loss=failing,
            optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
            data=data(),
            evaluation_data=data(),
        )


class TestAccelerate(IntegrationContract):
    @pytest.fixture(autouse=True)
    def _installed(self) -> Iterator[None]:
        pytest.importorskip("accelerate")
        yield
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)

    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        from accelerate import Accelerator

        from rightbatch.integrations.accelerate import elastic

        accelerator = Accelerator(cpu=True)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), BATCH))
        step = elastic(accelerator, model, optimizer, loss, micro_batch_size=micro_batch_size)
        for _ in range(EPOCHS):
            for batch in loader:
                step(batch)
            step.evaluate(data().tensors)
        return list(accelerator.unwrap_model(model).state_dict().values())

    def test_accumulation_in_the_accelerator_is_refused(self) -> None:
        from accelerate import Accelerator

        from rightbatch.integrations.accelerate import elastic

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        with pytest.raises(rb.UsageError, match="gradient_accumulation_steps must be 1"):
            elastic(accelerator, model, torch.optim.SGD(model.parameters(), 0.1), loss)


class TestTransformers(IntegrationContract):
    """A language model, whose loss averages over tokens of the whole accumulated batch."""

    accumulation = 2

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("transformers")
        logging.getLogger("transformers").setLevel(logging.ERROR)

    def trainer(self, folder: Path, micro_batch_size: int, **more: Any) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

        from rightbatch.integrations.transformers import ElasticTrainer

        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=30,
            n_positions=12,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        generator = torch.Generator().manual_seed(1)
        texts = []
        for _ in range(EXAMPLES):
            tokens = torch.randint(1, 30, (10,), generator=generator)
            labels = tokens.clone()
            labels[int(torch.randint(3, 10, (), generator=generator)) :] = -100
            texts.append({"input_ids": tokens, "labels": labels})
        arguments = TrainingArguments(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=BATCH // 2,
            per_device_eval_batch_size=BATCH,
            gradient_accumulation_steps=self.accumulation,
            num_train_epochs=EPOCHS,
            eval_strategy="epoch",
            save_strategy="epoch",
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **more,
        )
        return ElasticTrainer(
            model=GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=texts,
            eval_dataset=texts[:15],
            micro_batch_size=micro_batch_size,
        )

    def test_a_workload_of_a_trainer_trains_as_the_trainer_does(self, tmp_path: Path) -> None:
        from transformers import Trainer

        from rightbatch.integrations.transformers import workload

        plain = self.trainer(tmp_path / "plain", 4, train_sampling_strategy="sequential")
        plain.__class__ = Trainer
        w = workload(self.trainer(tmp_path / "other", 4))
        assert w.scheduler is not None and w.clip_norm == 1.0
        size, steps = BATCH, 2 * -(-EXAMPLES // BATCH)
        schedule = w.scheduler(w.optimizer, steps)
        step = rb.Elastic(
            w.model,
            w.optimizer,
            w.loss,
            micro_batch_size=4,
            count=w.count,
            split=w.split,
            clip_norm=w.clip_norm,
            scheduler=schedule,
        )
        w.model.train()
        for _ in range(EPOCHS):
            for start in range(0, EXAMPLES, size):
                chosen = range(start, min(start + size, EXAMPLES))
                step(w.collate([w.data[i] for i in chosen]))
        plain.train()
        for one, other in zip(w.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)

    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        trainer = self.trainer(folder, micro_batch_size)
        trainer.train()
        return list(trainer.model.state_dict().values())

    def resumed(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        self.train(folder, micro_batch_size)
        first = min((folder / "out").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        trainer = self.trainer(folder, micro_batch_size)
        trainer.train(resume_from_checkpoint=str(first))
        return list(trainer.model.state_dict().values())

    def test_it_trains_as_the_trainer_without_it(self, tmp_path: Path) -> None:
        from transformers import Trainer

        elastic = self.trainer(tmp_path / "elastic", 4)
        plain = self.trainer(tmp_path / "plain", 4)
        plain.__class__ = Trainer
        mine, theirs = elastic.train(), plain.train()
        assert mine.training_loss == pytest.approx(theirs.training_loss, rel=1e-5)
        for one, other in zip(elastic.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert elastic.evaluate()["eval_loss"] == pytest.approx(
            plain.evaluate()["eval_loss"], rel=1e-5
        )

    def test_parts_without_labels_do_not_count_in_the_evaluation(self, tmp_path: Path) -> None:
        from transformers import Trainer

        elastic, plain = self.trainer(tmp_path, 1), self.trainer(tmp_path, 1)
        plain.__class__ = Trainer
        data = [dict(each) for each in elastic.eval_dataset]
        unlabelled = [each | {"labels": torch.full((10,), -100)} for each in data[:2]]
        expected = plain.evaluate(data[2:] + unlabelled)["eval_loss"]
        found = elastic.evaluate(data[2:] + unlabelled)["eval_loss"]
        assert found == pytest.approx(expected, rel=1e-5)
        expected, found = (each.evaluate(unlabelled)["eval_loss"] for each in (plain, elastic))
        assert found != found and expected != expected

    def test_predictions_are_put_together_again(self, tmp_path: Path) -> None:
        trainer = self.trainer(tmp_path, 2)
        found = trainer.predict(trainer.eval_dataset)
        assert found.predictions.shape == (15, 10, 30)
        assert found.label_ids.shape == (15, 10)


class TestLightning(IntegrationContract):
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def module(self) -> Any:
        import lightning.pytorch as lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network()

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                value = loss(self.network, batch)
                self.log("train_loss", value, on_epoch=True)
                return value

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("validation_loss", loss(self.network, batch))

            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
                schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
                return [optimizer], [schedule]

        return Module()

    def trainer(self, folder: Path, callbacks: list[Any], **more: Any) -> Any:
        import lightning.pytorch as lightning

        return lightning.Trainer(
            **{"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1} | more,
            callbacks=callbacks,
            default_root_dir=folder,
            gradient_clip_val=0.5,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )

    def test_a_workload_of_a_module_has_its_optimizer_in_every_form(self) -> None:
        from rightbatch.integrations.lightning import workload

        module = self.module()
        (optimizer,), schedules = module.configure_optimizers()
        for form in (
            optimizer,
            [optimizer],
            ([optimizer], schedules),
            {"optimizer": optimizer, "lr_scheduler": schedules[0]},
            ({"optimizer": optimizer},),
        ):
            module.configure_optimizers = lambda form=form: form
            assert workload(module, DataLoader(data(), BATCH)).optimizer is optimizer
        for form in (None, [optimizer, optimizer]):
            module.configure_optimizers = lambda form=form: form
            with pytest.raises(rb.UsageError, match="optimizer"):
                workload(module, DataLoader(data(), BATCH))
        module.automatic_optimization = False
        with pytest.raises(rb.UsageError, match="manual optimization"):
            workload(module, DataLoader(data(), BATCH))

    def train(self, folder: Path, micro_batch_size: int, **more: Any) -> Sequence[Tensor]:
        from rightbatch.integrations.lightning import ElasticBatches

        module = self.module()
        checkpoint = more.pop("checkpoint", None)
        trainer = self.trainer(folder, [ElasticBatches(micro_batch_size=micro_batch_size)], **more)
        loaders = DataLoader(data(), BATCH), DataLoader(data(), BATCH)
        trainer.fit(module, *loaders, ckpt_path=checkpoint)
        trainer.save_checkpoint(folder / "end.ckpt")
        return list(module.state_dict().values())

    def resumed(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        self.train(folder, micro_batch_size, max_epochs=1)
        return self.train(folder, micro_batch_size, checkpoint=folder / "end.ckpt")

    def test_it_trains_as_lightning_without_it(self, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        (tmp_path / "elastic").mkdir()
        module = self.module()
        trainer = self.trainer(tmp_path / "plain", [])
        trainer.fit(module, DataLoader(data(), BATCH), DataLoader(data(), BATCH))
        mine = self.train(tmp_path / "elastic", 4)
        for one, other in zip(mine, module.state_dict().values(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_the_module_is_its_own_again_afterwards(self, tmp_path: Path) -> None:
        from rightbatch.integrations.lightning import ElasticBatches

        module = self.module()
        self.trainer(tmp_path, [ElasticBatches(micro_batch_size=4)]).fit(
            module, DataLoader(data(), BATCH)
        )
        assert module.automatic_optimization
        assert "training_step" not in vars(module)

    def test_accumulation_in_the_trainer_is_refused(self, tmp_path: Path) -> None:
        from rightbatch.integrations.lightning import ElasticBatches

        trainer = self.trainer(tmp_path, [ElasticBatches()], accumulate_grad_batches=2)
        with pytest.raises(rb.UsageError, match="accumulate_grad_batches must be 1"):
            trainer.fit(self.module(), DataLoader(data(), BATCH))


@pytest.mark.yolo
class TestUltralytics(IntegrationContract):
    """The detection loss divides by a sum over the batch, so parts are not the whole."""

    is_exact = False
    micro_batch_size = 6
    when = 1  # there are two validations

    @pytest.fixture(autouse=True)
    def _data(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        pytest.importorskip("ultralytics")
        from yolo_models import tiny

        from rightbatch.examples import render_parts

        if "data" not in vars(type(self)):
            folder = tmp_path_factory.mktemp("parts") / "parts"
            type(self).data = render_parts(folder, images=12, validation=6, size=64)
            type(self).model = str(tiny(folder.parent))

    data: Path
    model: str

    def train(self, folder: Path, micro_batch_size: int) -> Sequence[Tensor]:
        from ultralytics import YOLO

        model = self.trained(YOLO(self.model), folder, micro_batch_size)
        return list(model.model.state_dict().values())

    def trained(self, model: Any, folder: Path, batch: int) -> Any:
        from rightbatch.integrations.ultralytics._elastic import ElasticYolo

        model.add_callback("on_pretrain_routine_start", self.made(ElasticYolo))
        model.train(
            data=str(self.data),
            epochs=2,
            batch=batch,
            nbs=batch,
            imgsz=64,
            device="cpu",
            workers=0,
            project=str(folder),
            name="run",
            plots=False,
            verbose=False,
            exist_ok=True,
        )
        return model

    def made(self, make: Any) -> Any:
        def callback(trainer: Any) -> None:
            self.elastic = make(trainer)

        return callback

    def test_without_a_failure_it_trains_as_ultralytics_does(
        self, undisturbed: Sequence[Tensor], tmp_path: Path
    ) -> None:
        self.made = lambda make: lambda trainer: None  # type: ignore[method-assign]
        plain = self.train(tmp_path, self.micro_batch_size)
        for one, other in zip(plain, undisturbed, strict=True):
            assert torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)

    def test_memory_that_runs_out_in_the_second_epoch_and_in_validation_is_counted(
        self, tmp_path: Path
    ) -> None:
        with (
            inject_out_of_memory("forward", (3, 4)),
            inject_out_of_memory("evaluation", 0),
        ):
            self.train(tmp_path, self.micro_batch_size)
        assert self.elastic.out_of_memory_events == 3


def test_parts_of_a_detection_batch_keep_their_objects() -> None:
    pytest.importorskip("ultralytics")
    from rightbatch.integrations.ultralytics._batches import split

    batch = {
        "img": torch.arange(3.0).reshape(3, 1, 1, 1),
        "im_file": ["a", "b", "c"],
        "batch_idx": torch.tensor([0.0, 0.0, 2.0]),
        "cls": torch.tensor([[1.0], [2.0], [3.0]]),
        "bboxes": torch.rand(3, 4),
    }
    first, second = split(batch, 2)
    assert first["im_file"] == ["a", "b"]
    assert first["cls"].tolist() == [[1.0], [2.0]]
    assert second["cls"].tolist() == [[3.0]]
    assert second["batch_idx"].tolist() == [0.0]
    assert torch.equal(second["bboxes"], batch["bboxes"][2:])


warnings.filterwarnings("ignore", module="lightning")
