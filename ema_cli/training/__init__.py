"""During and after training, with torch: the live EMA of a model, BatchNorm statistics, callbacks for trainers."""
