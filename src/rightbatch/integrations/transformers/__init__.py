"""Transformers: a `Trainer` whose training and evaluation survive running out of memory.

::

    from rightbatch.integrations.transformers import ElasticTrainer
    trainer = ElasticTrainer(model=model, args=arguments, train_dataset=data)

For your own trainer: `class MyTrainer(ElasticMixin, BaseTrainer)`. For `fit`, `predict`, `tune`,
`train` and `study`, a factory that makes a `Workload` of a trainer::

    rb.tune(lambda: workload(Trainer(model=model(), args=arguments, train_dataset=data)))
"""

from importlib.util import find_spec

from rightbatch._errors import MissingExtraError

if find_spec("transformers") is None:
    raise MissingExtraError("transformers", "transformers")

from rightbatch.integrations.transformers._elastic_trainer import ElasticMixin, ElasticTrainer
from rightbatch.integrations.transformers._workload import workload

__all__ = ["ElasticMixin", "ElasticTrainer", "workload"]
