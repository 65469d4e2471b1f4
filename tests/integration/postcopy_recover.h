/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_POSTCOPY_RECOVER_H
#define TERN_TESTS_POSTCOPY_RECOVER_H

/* Postcopy whose link is lost; cases of test_postcopy.c. */

void lost_link_pauses_both_sides(void **state);
void lost_link_while_pages_move(void **state);
void link_lost_with_the_last_page(void **state);
void guest_writes_across_lost_links(void **state);
void lost_link_of_huge_pages(void **state);
void requests_are_lost_several_times(void **state);
void recovery_is_cut_at_every_step(void **state);
void link_lost_before_started_arrives(void **state);
void link_lost_before_go_arrives(void **state);
void link_lost_with_complete(void **state);
void link_lost_with_bye(void **state);
void recovery_over_another_transport(void **state);
void recovery_finds_nobody(void **state);
void recovery_of_a_stranger_is_turned_away(void **state);
void new_migration_to_a_paused_destination_is_turned_away(void **state);
void faults_while_paused_wait(void **state);
void paused_source_is_deleted(void **state);
void paused_destination_is_deleted(void **state);
void paused_session_is_not_cancelled(void **state);

#define POSTCOPY_RECOVER_CASES                                                                     \
	LANE_CASE(lost_link_pauses_both_sides), LANE_CASE(lost_link_while_pages_move),             \
		LANE_CASE(link_lost_with_the_last_page),                                           \
		LANE_CASE(guest_writes_across_lost_links), LANE_CASE(lost_link_of_huge_pages),     \
		LANE_CASE(requests_are_lost_several_times),                                        \
		LANE_CASE(recovery_is_cut_at_every_step),                                          \
		LANE_CASE(link_lost_before_started_arrives),                                       \
		LANE_CASE(link_lost_before_go_arrives), LANE_CASE(link_lost_with_complete),        \
		LANE_CASE(link_lost_with_bye), LANE_CASE(recovery_over_another_transport),         \
		LANE_CASE(recovery_finds_nobody),                                                  \
		LANE_CASE(recovery_of_a_stranger_is_turned_away),                                  \
		LANE_CASE(new_migration_to_a_paused_destination_is_turned_away),                   \
		LANE_CASE(faults_while_paused_wait), LANE_CASE(paused_source_is_deleted),          \
		LANE_CASE(paused_destination_is_deleted),                                          \
		LANE_CASE(paused_session_is_not_cancelled)

#endif
