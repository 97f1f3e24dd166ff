"""Lightning: a callback that runs each batch of the loader as one update, in parts that fit.

::

    trainer = L.Trainer(callbacks=[ElasticBatches()])
    trainer.fit(module, loader)

For `fit`, `predict`, `tune`, `train` and `study`, a factory that makes a `Workload` of the module
and its loaders, or its `LightningDataModule`::

    rb.tune(lambda: workload(Module(), DataLoader(Images())))
    rb.tune(lambda: workload(Module(), ImagesDataModule()))
"""

from rightbatch.integrations.lightning._elastic_batches import ElasticBatches
from rightbatch.integrations.lightning._workload import workload

__all__ = ["ElasticBatches", "workload"]
