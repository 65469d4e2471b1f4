/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_SCAN_H
#define TERN_SRC_SCAN_H

/*
 * The scan of the first round: which pages exist.
 *
 * Memory is looked at in sections, each just before its first stripe is sent, so that
 * the first byte leaves soon whatever the guest's size.  A section is large enough
 * that sparse memory costs few calls.  Whoever comes to a section first scans it;
 * others who need it wait for that.
 */

#include <stdint.h>
#include <tern/error.h>

#include "populated.h"
#include "region.h"
#include "stripe.h"

struct scan;

/* scan_new - nothing is scanned yet.  @regions and @populated stay the caller's.  NULL: no memory. */
struct scan *scan_new(const struct region_list *regions, const struct populated *populated);
void scan_delete(struct scan *s);

/*
 * scan_stripe - set the bits of @st in its region's dirty bitmap for pages that exist.
 *
 * Scans all sections that @st lies in and that nobody has scanned, and adds the
 * number of pages found to *found.  Any worker, concurrently.  0 or -errno with *err.
 */
int scan_stripe(struct scan *s, const struct stripe *st, uint64_t *found, struct tern_error *err);

/* scan_overhead_bytes - memory it holds. */
uint64_t scan_overhead_bytes(const struct scan *s);

#endif
