//! The curves of a run.

use super::{
    ReportData,
    chart::{Band, Chart, Mark, Marks, Series, smoothed},
    html,
};
use crate::summary::Measured;

/// Values from which a curve is also shown smoothed.
const SMOOTH_FROM: usize = 12;

/// What rounding alone may come to where sampler and learner are not equal bit for bit: the scale of that curve.
const ROUNDING: f64 = 1e-4;

/// The section; empty without a step.
pub fn section(data: &ReportData) -> String {
    let charts = [reward, held_out, length, entropy, loss, grad_norm, no_signal, kl, mismatch].map(|chart| chart(data));
    let figures: String = charts.iter().filter(|c| !c.is_empty()).map(Chart::figure).collect();
    if figures.is_empty() {
        return String::new();
    }
    html::section("curves", "Curves", &format!("<div class=\"charts\">\n{figures}</div>\n"))
}

/// A curve as it is, with its moving mean where it is long enough.
fn line(points: Vec<(f64, f64)>) -> Vec<Series> {
    if points.len() < SMOOTH_FROM {
        return vec![Series { name: "each step", class: "one", points }];
    }
    let mean = smoothed(&points, (points.len() / 10).max(3) | 1);
    vec![
        Series { name: "each step", class: "faint", points },
        Series { name: "moving mean", class: "one", points: mean },
    ]
}

fn reward(data: &ReportData) -> Chart {
    let note = "Mean reward of the completions that the step was trained on, sampled by the policy before it.".into();
    Chart { title: "Reward in training", note, series: line(data.series("reward")), ..Chart::default() }
}

fn held_out(data: &ReportData) -> Chart {
    let evaluations = &data.summary.evaluations;
    let graded = data.summary.is_graded();
    let marks = |name, class, of: fn(&crate::summary::Evaluation) -> Option<&Measured>| {
        let mark = |e: &crate::summary::Evaluation| {
            let (y, error) = of(e)?.figure(graded)?;
            Some(Mark { x: e.step as f64, y, error: error.unwrap_or(0.0) })
        };
        Marks { name, class, marks: evaluations.iter().filter_map(mark).collect() }
    };
    let questions =
        evaluations.iter().filter_map(|e| e.greedy.as_ref().or(e.sampled.as_ref())).map(|m| m.questions).max();
    let note = format!(
        "{} {} questions that are never trained on. Bars: one standard error.",
        if graded { "Mean reward of answers to" } else { "Share of right answers to" },
        questions.unwrap_or(0)
    );
    Chart {
        title: if graded { "Reward on held-out questions" } else { "Accuracy on held-out questions" },
        note,
        marks: vec![marks("greedy", "one", |e| e.greedy.as_ref()), marks("sampled", "two", |e| e.sampled.as_ref())],
        include: if graded { Vec::new() } else { vec![0.0, 1.0] },
        ..Chart::default()
    }
}

fn length(data: &ReportData) -> Chart {
    let (low, high) = (data.series("completions/min_length"), data.series("completions/max_length"));
    let points = low.iter().zip(&high).filter(|(l, h)| l.0 == h.0).map(|(l, h)| (l.0, l.1, h.1)).collect();
    Chart {
        title: "Length of completions",
        note: "Sampled tokens per completion.".into(),
        series: vec![Series { name: "mean", class: "one", points: data.series("completions/mean_length") }],
        band: Some(Band { name: "shortest to longest", points }),
        include: vec![0.0],
        ..Chart::default()
    }
}

fn loss(data: &ReportData) -> Chart {
    let note = "The objective. In policy gradients it need not fall: advantages are taken anew in every step.".into();
    Chart { title: "Loss", note, series: line(data.series("loss")), ..Chart::default() }
}

fn grad_norm(data: &ReportData) -> Chart {
    let max = data.config.optim.max_grad_norm;
    let note = format!("Length of the gradient before it is clipped to {}.", html::number(max));
    Chart {
        title: "Gradient norm",
        note,
        series: line(data.series("grad_norm")),
        include: vec![0.0],
        ..Chart::default()
    }
}

fn entropy(data: &ReportData) -> Chart {
    let note = "Mean over trained tokens, in nats: how undecided the policy is.".into();
    Chart { title: "Entropy", note, series: line(data.series("entropy")), include: vec![0.0], ..Chart::default() }
}

fn no_signal(data: &ReportData) -> Chart {
    let note = "Share of groups whose members all got the same reward: nothing is learnt from those.".into();
    let series = line(data.series("frac_reward_zero_std"));
    Chart { title: "Groups without a signal", note, series, include: vec![0.0, 1.0], ..Chart::default() }
}

fn kl(data: &ReportData) -> Chart {
    let note = "Estimated divergence from the reference policy, in nats per token.".into();
    Chart { title: "KL divergence", note, series: line(data.series("kl")), include: vec![0.0], ..Chart::default() }
}

fn mismatch(data: &ReportData) -> Chart {
    let points = data.series("mismatch/logp_abs_max");
    let note = match points.iter().all(|(_, y)| *y == 0.0) {
        true => "Largest difference between the log-probs of sampler and learner: none, bit for bit, in every step.",
        false => "Largest difference between the log-probs of sampler and learner in a step.",
    };
    let series = vec![Series { name: "largest", class: "one", points }];
    Chart {
        title: "Sampler against learner",
        note: note.into(),
        series,
        include: vec![0.0, ROUNDING],
        ..Chart::default()
    }
}
