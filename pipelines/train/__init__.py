"""Training on Ray Train and DeepSpeed, whatever is trained: `finetune` and `pretrain` each bring a task.

task.py       what a task brings: model, loss, batches, moving average, validation
driver.py     the job's side: workers started, told to stop, their end made readable
loop.py       what each worker runs; engine.py DeepSpeed around the loss; state.py what is gathered from it
order.py, rows.py    which pictures a step takes, and reading them; reader.py batches in the background
checkpoint.py, record.py, attempt.py    what stands when a run is killed, and who may write it
log.py, watch.py, devices.py    what MLflow is told, what is watched, and on what it runs
"""
