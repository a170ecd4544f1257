//! One page of metrics under construction: families go in, OpenMetrics text comes out, and no more series than the cap.

use std::{borrow::Cow, fmt};

use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::state::{BUCKETS_SECONDS, HistogramReading};

/// Series of one label set of a histogram: buckets, the last without a bound, sum and count.
const HISTOGRAM_SERIES: usize = BUCKETS_SECONDS.len() + 3;

/// A value of a label.
pub(super) type Label<'a> = Cow<'a, str>;

/// What a family is, for the page and for the document about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// The name, as samples carry it.
    pub(super) name: String,
    /// Counter, gauge, histogram or info.
    pub(super) kind: &'static str,
    /// The names of its labels.
    pub(super) labels: Vec<&'static str>,
    /// What it tells.
    pub(super) help: &'static str,
}

/// The page.
#[derive(Debug)]
pub(super) struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
    /// What was written so far.
    pub(super) families: Vec<Family>,
    room: usize,
    /// Series that found no room.
    pub(super) dropped: u64,
}

impl<'a> Page<'a> {
    /// A page with room for `room` series.
    pub(super) fn new(encoder: DescriptorEncoder<'a>, room: usize) -> Self {
        Self { encoder, families: Vec::new(), room, dropped: 0 }
    }

    /// Makes room for one series more.
    pub(super) fn make_room(&mut self) {
        self.room += 1;
    }

    /// Counters; `name` is without `_total`.
    pub(super) fn counters<'l, const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        samples: impl IntoIterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        self.note(format!("{name}_total"), "counter", &labels, help);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (values, count) in samples {
            if take(&mut self.room, &mut self.dropped, 1) {
                let set = pairs(labels, values);
                // An empty set would be written as empty braces.
                if set.is_empty() {
                    family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                } else {
                    family.encode_family(&set)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }

    /// A counter with a fraction and without labels; `name` is without `_total`.
    pub(super) fn fraction(
        &mut self,
        name: &'static str,
        help: &'static str,
        count: Option<f64>,
    ) -> fmt::Result {
        self.note(format!("{name}_total"), "counter", &[], help);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        match count {
            Some(count) if take(&mut self.room, &mut self.dropped, 1) => {
                family.encode_counter::<NoLabelSet, _, u64>(&count, None)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Gauges.
    pub(super) fn gauges<'l, const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        samples: impl IntoIterator<Item = ([Label<'l>; N], f64)>,
    ) -> fmt::Result {
        self.note(name.to_owned(), "gauge", &labels, help);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (values, number) in samples {
            if take(&mut self.room, &mut self.dropped, 1) {
                let set = pairs(labels, values);
                if set.is_empty() {
                    family.encode_gauge(&number)?;
                } else {
                    family.encode_family(&set)?.encode_gauge(&number)?;
                }
            }
        }
        Ok(())
    }

    /// Histograms of durations.
    pub(super) fn histograms<'l, const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        samples: impl IntoIterator<Item = ([Label<'l>; N], HistogramReading)>,
    ) -> fmt::Result {
        self.note(name.to_owned(), "histogram", &labels, help);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (values, reading) in samples {
            if take(&mut self.room, &mut self.dropped, HISTOGRAM_SERIES) {
                let bounds = BUCKETS_SECONDS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(reading.counts).collect();
                let (sum, count) = (reading.sum_seconds, reading.count());
                let set = pairs(labels, values);
                if set.is_empty() {
                    family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                } else {
                    let mut one = family.encode_family(&set)?;
                    one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                }
            }
        }
        Ok(())
    }

    /// Labels that say what this is; `name` is without `_info`.
    pub(super) fn info<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        values: [Label<'_>; N],
    ) -> fmt::Result {
        self.note(format!("{name}_info"), "info", &labels, help);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Info)?;
        if take(&mut self.room, &mut self.dropped, 1) {
            family.encode_info(&pairs(labels, values))?;
        }
        Ok(())
    }

    fn note(&mut self, name: String, kind: &'static str, labels: &[&'static str], help: &'static str) {
        self.families.push(Family { name, kind, labels: labels.to_vec(), help });
    }
}

/// Takes room for `series`, or counts them as dropped.
fn take(room: &mut usize, dropped: &mut u64, series: usize) -> bool {
    match room.checked_sub(series) {
        Some(left) => {
            *room = left;
            true
        }
        None => {
            *dropped += series as u64;
            false
        }
    }
}

fn pairs<'l, const N: usize>(
    names: [&'static str; N],
    values: [Label<'l>; N],
) -> Vec<(&'static str, Label<'l>)> {
    names.into_iter().zip(values).collect()
}
