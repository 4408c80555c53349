//! Numbers that a process shows to others: what a metric is, and one value of it. What there is to show, and where it comes
//! from, is the business of whoever puts the actors together.

/// How the values of a metric go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Up and down.
    Gauge,
    /// Up only, and back to zero with the process.
    Counter,
}

/// A metric: the same name wherever it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Letters, digits and underscores; ends with the unit, and with `_total` for a counter.
    pub name: String,
    /// How its values go.
    pub kind: Kind,
    /// As UCUM writes it (`s`, `By`); empty for counts and shares.
    pub unit: &'static str,
    /// What it is, in one line.
    pub help: &'static str,
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Place of the metric in its table.
    pub metric: usize,
    /// What tells it from the others of its metric.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}
