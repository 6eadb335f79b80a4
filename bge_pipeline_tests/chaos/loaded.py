"""What the fork server loads once, so that no worker has to."""

import bge_pipeline.cli
import bge_pipeline.definitions
import bge_pipeline.orchestration.in_process  # noqa: F401
