"""Tables about what keeps history short and memory sound: compaction, persistence, ingestion, cortex.

Floor:  config
Source: control spec 1.5.5 and 1.5.6; memory spec 10.1 and 13
"""

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from spacebot.config.tables import Table, form


class CompactionConfig(Table):
    """`[defaults.compaction]`: shares of the context window at which history is shortened. They must rise."""

    background_threshold: float = Field(
        default=0.80, gt=0, le=1, description="From here on the oldest third is summarised beside the talk."
    )
    aggressive_threshold: float = Field(default=0.85, gt=0, le=1, description="From here on the oldest half is.")
    emergency_threshold: float = Field(
        default=0.95, gt=0, le=1, description="From here on the oldest half is dropped at once, without a model."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.background_threshold < self.aggressive_threshold < self.emergency_threshold:
            raise ValueError("must rise: background_threshold < aggressive_threshold < emergency_threshold")
        return self


class MemoryPersistenceConfig(Table):
    """`[defaults.memory_persistence]`: when a quiet run saves what a conversation said."""

    enabled: bool = Field(default=True, description="Whether conversations are gone through for memories.")
    message_interval: int = Field(
        default=20, ge=1, le=200, description="People's messages between two runs of a conversation."
    )
    max_interval_secs: float = Field(
        default=900, gt=0, description="Longest time between two runs in seconds, when at least one message came."
    )
    event_interval: int = Field(
        default=5, ge=1, le=10_000, description="Finished branches and workers between two runs."
    )


class IngestionConfig(Table):
    """`[defaults.ingestion]`: the drop folder `ingest/` in the workspace, whose documents become memories."""

    enabled: bool = Field(default=True, description="Whether the folder is looked at.")
    poll_interval_secs: float = Field(default=30, ge=1, description="Seconds between two looks into the folder.")
    chunk_size: int = Field(default=4000, ge=200, le=100_000, description="Characters that are read at a time.")


class CortexConfig(Table):
    """`[defaults.cortex]`: what looks after memory and processes."""

    model_config = ConfigDict(allow_inf_nan=False)

    tick_interval_secs: float = Field(default=30, ge=1, description="Seconds between two looks at what is due.")
    worker_timeout_secs: float = Field(
        default=1200, ge=10, description="Seconds without any progress after which a worker is ended; not its age."
    )
    branch_timeout_secs: float = Field(
        default=600, ge=5, description="Seconds without any progress after which a branch is ended; not its age."
    )
    circuit_breaker_threshold: int = Field(default=3, ge=1, le=10, description="Failures in a row until a duty pauses.")
    circuit_breaker_pause_secs: float = Field(default=1800, gt=0, description="How long it pauses, in seconds.")
    bulletin_interval_secs: float = Field(
        default=3600, ge=1, json_schema_extra=form(60),
        description="Seconds between two bulletins at least; one is written only when something changed.",
    )  # fmt: skip
    bulletin_max_words: int = Field(
        default=500, ge=50, le=5000, json_schema_extra=form(100, 5000), description="Length of the bulletin."
    )
    association_interval_secs: float = Field(default=300, ge=1, description="Seconds between two searches for links.")
    # Calibrated for the bundled model; the figures stand in memory/linking.py.
    association_similarity_threshold: float = Field(
        default=0.6, ge=0, le=1, description="Cosine above which two memories are linked as related."
    )
    association_updates_threshold: float = Field(
        default=0.85, ge=0, le=1, description="Cosine above which one may be a newer version of the other."
    )
    association_max_per_pass: int = Field(default=100, ge=1, le=100_000, description="New links of one search.")
    maintenance_interval_secs: float = Field(default=3600, ge=1, description="Seconds between two rounds of upkeep.")
    maintenance_decay_rate: float = Field(
        default=0.05, ge=0, le=1, description="Share of its importance that a memory of a fading type loses in a day."
    )
    maintenance_prune_threshold: float = Field(
        default=0.1, ge=0, le=1, description="Importance below which an old memory is hidden."
    )
    maintenance_min_age_days: float = Field(
        default=30, ge=0, le=36_500, description="Days that a memory lives at least before it may be hidden."
    )
    maintenance_merge_similarity_threshold: float = Field(
        default=0.95, ge=0, le=1, description="Cosine above which two memories may become one."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.association_similarity_threshold > self.association_updates_threshold:
            raise ValueError("association_similarity_threshold must not exceed association_updates_threshold")
        return self
