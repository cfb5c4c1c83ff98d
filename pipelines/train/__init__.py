"""Training on Ray Train and DeepSpeed; `finetune` and `pretrain` each provide a task.

task.py       interface of a task: model, loss, batches, moving average, validation
driver.py     driver side: starts the workers, forwards stop requests, reports how the run ended
worker_setup.py, channel.py, stopping.py    worker set-up, messages through Ray's store, stop signals
loop.py       training loop of each worker; engine.py wraps the loss in DeepSpeed; state.py gathers its state
sample_order.py, row_groups.py, data_loader.py    sample order, reading row groups, prefetched batches
checkpoint.py, checkpointing.py, uploader.py, ema.py    checkpoints: format, policy, background upload, averages
metrics_log.py, history.py    metrics by step, and the files that keep them beside the checkpoints
run_lease.py, monitoring.py, devices.py    which attempt may write, watchdog and speed, number types and GPUs
tracking_log.py, tracking_sender.py    metrics and images sent to MLflow
"""
