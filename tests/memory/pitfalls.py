"""Index of the pitfalls of memory spec 20: each met here, or not ours with the reason.

A test proves an item by its marker, `@pytest.mark.spec("M-P01")`. One that a test without marker proves stands in
`ELSEWHERE`. What the design makes impossible, or leaves to a capability that does not exist yet, stands in
`NOT_OURS`. `test_spec_coverage.py` checks that each item stands in exactly one of the three places.
"""

ITEMS: dict[str, str] = {
    "M-P01": "importance does not depend on how often upkeep runs, nor does upkeep touch the time of change",
    "M-P02": "similarity is the cosine, in the search and in the index",
    "M-P03": "indexes are built once, not at every save or start",
    "M-P04": "a vector table that was lost is really made anew",
    "M-P05": "a changed text has one vector row, the new one",
    "M-P06": "what is forgotten or pruned leaves no vector",
    "M-P07": "a failing model leaves nothing that is stored and cannot be found",
    "M-P08": "the same fact is not piled up by repeated saves",
    "M-P09": "one form of time everywhere, compared as text",
    "M-P10": "messages keep their order within one moment; pages skip and repeat nothing",
    "M-P11": "log writes keep their order and are finished at shutdown",
    "M-P12": "a merge keeps one text and never joins two",
    "M-P13": "ingestion deletes no file that it could not read, resumes, and does not run for ever",
    "M-P14": "a run counts as done without its closing tool",
    "M-P15": "no id gets into a predicate unchecked",
    "M-P16": "an unknown type or relation is told, not guessed",
    "M-P17": "where a memory comes from is filled in by the program",
    "M-P18": "the graph leg starts at what was found, counts each memory once, and keeps to its hops",
    "M-P19": "a filter of type does not thin out the results",
    "M-P20": "back-fill counts new edges only, keeps a model's edges, and points from newer to older",
    "M-P21": "back-fill passes over no memory",
    "M-P22": "a short conversation is looked through too, at the latest when its channel ends",
    "M-P23": "a run ends with its closing tool",
    "M-P24": "changes of memory are told, and nobody is held up by it",
    "M-P25": "the bulletin outlives a restart",
    "M-P26": "an idle agent calls no model",
    "M-P27": "a conversation is read back after a restart, the newest part of it",
    "M-P28": "channels are found by name without regard to case, and can be asked by time",
    "M-P29": "equal sort keys have a stable order",
    "M-P30": "long lines are split, texts are cut between characters",
    "M-P31": "a text longer than the model reads is found by more than its beginning",
    "M-P32": "thresholds are calibrated for the model that runs",
    "M-P33": "private talk stays private; untrusted text cannot delete or read transcripts",
    "M-P34": "workers reach neither identity files nor the drop folder",
    "M-P35": "ingestion can be switched on later; the embedding model is shipped",
    "M-P36": "secrets are stored safely",
    "M-P37": "upkeep blocks nobody, can be cancelled, and refuses senseless numbers",
    "M-P38": "edges to memories that do not exist are refused",
    "M-P39": "texts and uploads have a limit",
    "M-P40": "merging is atomic and keeps what it absorbed",
    "M-P41": "no secret gets into an event log",
    "M-P42": "what a crash left running is settled at the next start",
    "M-P43": "listings obey their limit and tell the true total",
    "M-P44": "hits are loaded and counted in one statement each",
    "M-P45": "a compaction keeps its summary, and a failed one loses nothing",
    "M-P46": "every line of a transcript says who spoke",
    "M-P47": "a failed branch frees its place",
}

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "M-P02": ("tests/memory/test_index.py::test_nearest_go_by_cosine_not_by_distance",),
    "M-P04": (
        "tests/memory/test_index.py::test_a_damaged_folder_is_made_anew_without_embedding_again",
        "tests/memory/test_index.py::test_a_table_that_dies_while_in_use_is_replaced",
    ),
    "M-P05": ("tests/memory/test_index.py::test_a_row_of_the_same_id_is_replaced_and_a_deleted_one_is_gone",),
    "M-P06": ("tests/memory/test_index.py::test_the_table_follows_saves_and_forgets",),
    "M-P07": ("tests/memory/test_memory.py::test_a_memory_without_a_vector_is_saved_found_and_embedded_later",),
    "M-P08": (
        "tests/memory/test_memory.py::test_the_same_words_are_kept_once_in_a_scope",
        "tests/tools/test_memory_tools.py::test_what_is_nearly_the_same_is_named_with_its_words",
    ),
    "M-P09": ("tests/test_message_search.py::test_bounds_are_exact_where_a_day_begins",),
    "M-P10": (
        "tests/test_conversations.py::test_pages_of_rows_of_one_instant_skip_nothing",
        "tests/test_message_search.py::test_pages_skip_and_repeat_nothing_of_what_was_said_in_one_moment",
    ),
    "M-P11": (
        "tests/storage/test_database.py::test_writes_keep_the_order_in_which_they_were_asked_for",
        "tests/storage/test_database.py::test_closing_finishes_what_waits_and_refuses_the_rest",
    ),
    "M-P13": (
        "tests/agent/test_ingestion.py::test_a_part_that_fails_is_tried_again_alone_and_then_the_file_goes",
        "tests/agent/test_ingestion.py::test_three_failures_set_a_file_aside_with_the_reason_beside_it",
        "tests/agent/test_ingestion.py::test_the_same_words_again_are_not_read_again_until_their_row_is_removed",
        "tests/agent/test_ingestion.py::test_another_chunk_size_begins_anew",
        "tests/flows/test_ingestion_crash.py::"
        "test_killed_at_any_point_every_statement_is_saved_once_and_no_finished_part_is_read_again",
    ),
    "M-P14": (
        "tests/agent/test_persistence.py::test_a_run_without_a_report_is_done_all_the_same",
        "tests/agent/test_ingestion.py::test_running_out_of_calls_after_saving_is_no_failure",
    ),
    "M-P15": ("tests/memory/test_index.py::test_an_id_from_elsewhere_never_enters_a_predicate",),
    "M-P16": (
        "tests/tools/test_memory_tools.py::test_wrong_arguments_of_save_are_explained",
        "tests/memory/test_views.py::test_a_type_from_another_time_reads_as_a_fact",
    ),
    "M-P17": (
        "tests/tools/test_memory_tools.py::test_provenance_is_the_process_s_own",
        "tests/tools/test_memory_tools.py::test_the_model_cannot_choose_where_a_memory_belongs",
    ),
    "M-P19": ("tests/memory/test_memory.py::test_a_type_filter_reaches_beyond_the_first_candidates",),
    "M-P22": (
        "tests/agent/test_persistence.py::test_a_short_talk_is_gone_through_when_it_rests",
        "tests/agent/test_persistence.py::test_a_stop_saves_first_and_what_it_cuts_is_saved_by_the_next_life",
        "tests/agent/test_persistence.py::test_a_run_that_fails_leaves_nothing_out",
    ),
    "M-P23": (
        "tests/agent/test_persistence.py::test_a_wrong_report_is_refused_and_the_right_one_ends_the_run_at_once",
    ),
    "M-P24": ("tests/memory/test_memory.py::test_a_save_is_announced_without_private_words",),
    "M-P25": ("tests/agent/test_bulletin.py::test_the_bulletin_outlives_the_program_and_is_not_made_again",),
    "M-P26": (
        "tests/agent/test_bulletin.py::test_an_unchanged_store_costs_nothing_and_a_change_waits_for_the_interval",
        "tests/agent/test_bulletin.py::test_failures_keep_the_old_bulletin_and_are_tried_ever_less_often",
        "tests/agent/test_cortex.py::test_an_idle_agent_asks_no_model_for_a_week_and_hardly_wakes",
    ),
    "M-P27": ("tests/agent/test_restart.py::test_the_conversation_is_remembered_after_a_restart",),
    "M-P28": (
        "tests/test_message_search.py::test_a_channel_is_found_by_name_before_prefix_before_part_before_id",
        "tests/test_message_search.py::test_bounds_are_exact_where_a_day_begins",
    ),
    "M-P29": ("tests/memory/test_search.py::test_ranks_have_no_gaps_and_the_order_never_varies",),
    "M-P30": (
        "tests/agent/test_chunking.py::test_a_long_line_is_cut_at_sentences_then_at_words_then_hard",
        "tests/agent/test_chunking.py::test_what_reads_as_one_sign_stays_whole",
    ),
    "M-P33": (
        "tests/memory/test_memory.py::test_a_direct_chat_is_private_and_a_room_is_not",
        "tests/test_message_search.py::test_private_talk_is_closed_to_others_whichever_way_it_is_looked_for",
        "tests/agent/test_ingestion.py::test_the_text_of_a_document_cannot_leave_its_frame",
    ),
    "M-P34": (
        "tests/tools/test_files.py::test_no_way_leads_out_of_the_workspace",
        "tests/tools/test_files.py::test_ingest_may_be_read_and_not_written",
        "tests/tools/test_sandbox.py::test_a_contained_command_cannot_write_beside_its_areas",
    ),
    "M-P35": (
        "tests/agent/test_ingestion.py::test_it_can_be_switched_on_and_off_at_any_time",
        "tests/build/test_model.py::test_the_graph_gives_the_golden_vectors_in_a_padded_batch",
    ),
    "M-P38": ("tests/tools/test_memory_tools.py::test_links_to_invented_ids_are_reported",),
    "M-P39": (
        "tests/memory/test_memory.py::test_what_cannot_be_kept_is_refused",
        "tests/agent/test_documents.py::test_a_document_has_a_largest_size",
    ),
    "M-P40": ("tests/flows/test_memory_crash.py::test_kills_lose_nothing_and_leave_store_and_table_in_agreement",),
    "M-P41": (
        "tests/memory/test_memory.py::test_secrets_are_not_remembered",
        "tests/tools/test_files.py::test_secrets_in_files_do_not_enter_history",
    ),
    "M-P42": (
        "tests/test_conversations.py::test_recovery_hands_out_what_is_open_and_closes_what_is_lost",
        "tests/agent/test_restart.py::test_a_worker_that_was_killed_is_reported_as_failed",
    ),
    "M-P43": (
        "tests/api/test_memory_routes.py::test_a_page_holds_what_was_asked_for_and_the_total_is_true",
        "tests/memory/test_views.py::test_pages_meet_without_gap_and_the_total_is_true",
    ),
    "M-P45": (
        "tests/agent/test_compaction.py::test_a_summary_that_fails_loses_nothing_and_is_tried_again",
        "tests/agent/test_compaction.py::test_what_is_worth_remembering_is_saved_in_the_scope_of_the_talk",
    ),
    "M-P46": (
        "tests/agent/test_persistence.py::test_after_so_many_messages_what_they_hold_is_saved_and_nobody_hears_of_it",
        "tests/agent/test_compaction.py::test_the_oldest_talk_becomes_a_summary_and_nothing_else_changes",
    ),
    "M-P47": ("tests/agent/test_delegation.py::test_a_branch_that_fails_still_reports_and_frees_its_place",),
}

NOT_OURS: dict[str, str] = {
    "M-P36": "secrets of the configuration are read from the environment; a store for them does not exist yet",
}
