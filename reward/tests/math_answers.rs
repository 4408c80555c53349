//! Pairs of answers that are and are not the same.

use folgore_reward::math_answer::{Answer, Comparison};

/// The same.
const EQUAL: &[(&str, &str)] = &[
    // Whole numbers and separators.
    ("1,000", "1000"),
    ("1,234,567", "1234567"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    (r"1,\!000", "1000"),
    ("007", "7"),
    ("+7", "7"),
    ("-7", "\u{2212}7"),
    ("--7", "7"),
    ("\u{ff11}\u{ff12}\u{ff0c}\u{ff10}\u{ff10}\u{ff10}", "12000"),
    ("\u{1d7d9}\u{1d7da}", "12"),
    ("7.", "7"),
    (r"$7$", "7"),
    (r"\(7\)", "7"),
    (r"\[7\]", "7"),
    (r"\boxed{7}", "7"),
    ("(7)", "7"),
    ("{7}", "7"),
    ("7\u{200b}", "7"),
    ("123456789012345678901234567890", "123,456,789,012,345,678,901,234,567,890"),
    // Decimals.
    ("0.5", "1/2"),
    (".5", "0.50"),
    ("5.000", "5"),
    ("0.3333333", "1/3"),
    ("3.14159265", r"\pi"),
    ("-0.75", r"-\frac{3}{4}"),
    ("1,234.50", "1234.5"),
    // Fractions and mixed numbers.
    ("1/2", r"\frac{1}{2}"),
    ("2/4", "1/2"),
    (r"\dfrac{3}{4}", r"\frac34"),
    (r"\tfrac{3}{4}", "0.75"),
    (r"\frac{-3}{4}", r"-\frac{3}{4}"),
    (r"\frac{3}{-4}", r"-\frac{3}{4}"),
    (r"\frac1{2}", r"\frac{1}2"),
    (r"\frac{1}{\frac{1}{2}}", "2"),
    (r"3\frac{1}{2}", "3.5"),
    ("3 1/2", r"\frac{7}{2}"),
    (r"-3\frac{1}{2}", "-3.5"),
    ("3½", "3.5"),
    ("¾", "0.75"),
    (r"\frac{1,000}{3}", "1000/3"),
    // Percent.
    ("50%", "0.5"),
    (r"50\%", "1/2"),
    ("12.5 %", "1/8"),
    ("50 percent", "50%"),
    // Scientific notation and powers.
    ("1e3", "1000"),
    ("1.5E-3", "0.0015"),
    (r"1.5 \times 10^{-3}", "0.0015"),
    (r"3 \cdot 10^8", "300000000"),
    ("10^{-3}", "0.001"),
    ("10^-3", "1/1000"),
    ("2^10", "1024"),
    ("2**10", "1024"),
    ("10²", "100"),
    ("10⁻²", "0.01"),
    ("1e308", "10^{308}"),
    ("(-2)^3", "-8"),
    ("-2^2", "-4"),
    ("4^{1/2}", "2"),
    ("8^{-2/3}", "1/4"),
    // Roots and pi.
    (r"\sqrt{9}", "3"),
    (r"\sqrt9", "3"),
    (r"\sqrt[3]{27}", "3"),
    (r"\sqrt{\frac{4}{9}}", "2/3"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"2\sqrt3", "2*sqrt(3)"),
    ("2√3", r"\sqrt{12}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\frac{3\pi}{4}", "0.75π"),
    (r"2\pi", "2pi"),
    (r"\sqrt{2}\cdot\sqrt{8}", "4"),
    (r"5+\sqrt{2}", r"\sqrt{2}+5"),
    // Units and money.
    (r"5\text{ cm}", "5"),
    ("5 cm", "5cm"),
    (r"5\ \mathrm{km/h}", "5 km/h"),
    (r"12\text{ cm}^2", "12"),
    (r"12\,\text{m}^{2}", "12"),
    ("30 degrees", r"30^\circ"),
    (r"30^{\circ}", "30°"),
    (r"\$5", "5 dollars"),
    ("€1,000", "1000"),
    (r"\frac{3}{4}\text{ hours}", "0.75"),
    // Names.
    ("x=5", "5"),
    ("x = 5", "x=5"),
    ("f(x) = 2x+1", "1+2x"),
    ("x_1 = 3", "3"),
    (r"\theta = 30^\circ", "30"),
    (r"x \in [1,2]", "[1,2]"),
    ("(x,y) = (1,2)", "(1,2)"),
    (r"\text{Area} = 12", "12"),
    // Lists and sets.
    ("1, 2", "2,1"),
    ("1,2", r"\{2,1\}"),
    ("{1,2}", r"\{2, 1\}"),
    (r"\{1,2,2\}", r"\{1,2\}"),
    (r"x=2 \text{ or } x=-3", "-3, 2"),
    ("2 or 3", "3 and 2"),
    (r"\pm 3", "3, -3"),
    (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
    (r"\emptyset", r"\{\}"),
    ("1,000, 2,000", "2000, 1000"),
    (r"\left\{ \frac12, 3 \right\}", "{0.5, 3}"),
    // Tuples and intervals.
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("(0.5, 1)", r"(\frac{1}{2}, 1)"),
    ("[0, 1)", r"\left[0, 1\right)"),
    (r"(-\infty, 3]", "(-∞,3]"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,+\infty) \cup (-\infty,1)"),
    ("3:4", "3 : 4"),
    ("10:30 am", "10:30"),
    // Expressions with letters.
    ("2x+3", "3+2x"),
    ("(x+1)(x-1)", "x^2-1"),
    (r"\frac{x^2}{x}", "x"),
    ("2ab", "2ba"),
    (r"\sqrt{x^2}", "x"),
    (r"2\alpha", r"\alpha+\alpha"),
    ("-3abc", "-3cab"),
    ("(A)", "A"),
    (r"\text{(B)}", "B"),
    (r"\textbf{(B)}", r"\text{B}"),
    // Words.
    (r"\text{Monday}", "monday"),
    ("Tom  Sawyer", "tom sawyer"),
    (r"\text{Yes}", "yes."),
];

/// Not the same.
const UNEQUAL: &[(&str, &str)] = &[
    ("1,000", "1,00"),
    ("1,000", "1"),
    ("1,000", "1.000"),
    ("12", "21"),
    ("7", "-7"),
    ("123456789012345678901234567890", "123456789012345678901234567891"),
    ("1000000", "1000000.5"),
    ("0.333", "1/3"),
    ("3.14", r"\pi"),
    ("0.5", "0.05"),
    ("50%", "50"),
    ("0.5%", "0.5"),
    ("5%", "0.5"),
    ("1/2", "2"),
    (r"3\frac{1}{2}", r"\frac{3}{2}"),
    ("3 1/2", "31/2"),
    (r"\frac{1}{23}", r"\frac12 3"),
    ("1e308", "1e307"),
    ("1e308", "inf"),
    ("10^{-3}", "10-3"),
    ("2^10", "20"),
    ("10²", "102"),
    ("-2^2", "4"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"2\sqrt{3}", "3.46"),
    (r"\sqrt{2}", "1.41"),
    (r"2\pi", "2"),
    (r"5\text{ cm}", "6 cm"),
    ("5 m", "5 n"),
    ("x=5", "x=6"),
    ("x=5", "y=5"),
    ("x=5", "x=5, x=6"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2]"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "1,2"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    ("(1,2)", "1.2"),
    ("[1,2]", r"\{1,2\}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{1,2\}", r"\{1\}"),
    ("1,2", "1,2,2"),
    ("1,2", "12"),
    (r"\pm 3", "3"),
    (r"(-\infty, 3]", r"(\infty, 3]"),
    (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1)"),
    (r"\infty", r"-\infty"),
    ("3:4", "4:3"),
    ("2x+3", "2x-3"),
    ("x", "y"),
    ("x^2", "2x"),
    ("2ab", "2a"),
    ("x", "A"),
    ("A", "B"),
    ("yes", "no"),
    (r"\text{Monday}", "Tuesday"),
    (r"\emptyset", "0"),
];

/// Not an answer: equal to nothing.
const UNREADABLE: &[&str] = &[
    "",
    " ",
    "$$",
    "nan",
    "NaN",
    "-inf",
    "Infinity",
    "1/0",
    r"\frac{1}{0}",
    "0^0",
    r"\sqrt{-1}",
    "((1)",
    "(1))",
    "{1",
    r"\frac{1",
    r"\frac{1}",
    "1e99999",
    "9^9^9",
    "9^{9^{9}}",
    "3 4",
    "1..2",
    "1.2.3",
    "x >",
    "2+",
    "*3",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    r"\unknown{3}",
    "]1,2[",
    "(1,2}",
    "2 = 2 = 2 maybe",
    "1 ± 2 ± 3",
    "because it is prime, 7",
    "we see that this is not at all clear",
];

fn same(a: &str, b: &str) -> Result<bool, String> {
    let parse = |text: &str| Answer::parse(text).map_err(|e| format!("{text:?}: {e}"));
    Ok(parse(a)?.equals(&parse(b)?, Comparison::default()))
}

#[test]
fn pairs_that_mean_the_same_are_equal_both_ways() {
    let mut wrong = Vec::new();
    for (a, b) in EQUAL {
        for (a, b) in [(a, b), (b, a)] {
            if same(a, b) != Ok(true) {
                wrong.push(format!("{a:?} and {b:?}: {:?}", same(a, b)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pairs_that_differ_are_not_equal() {
    let mut wrong = Vec::new();
    for (a, b) in UNEQUAL {
        for (a, b) in [(a, b), (b, a)] {
            if same(a, b) == Ok(true) {
                wrong.push(format!("{a:?} and {b:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_no_answer_is_refused() {
    let read: Vec<_> = UNREADABLE.iter().filter(|text| Answer::parse(text).is_ok()).collect();
    assert!(read.is_empty(), "{read:?}");
}

#[test]
fn the_tables_are_large_and_hold_no_pair_twice() {
    let mut pairs: Vec<_> = EQUAL.iter().chain(UNEQUAL).collect();
    let n = pairs.len();
    pairs.sort_unstable();
    pairs.dedup();
    assert_eq!(pairs.len(), n);
    assert!(n >= 120, "{n} pairs");
}

#[test]
fn the_tolerance_and_the_percent_switch_are_the_callers() {
    let parse = |text: &str| Answer::parse(text).unwrap();
    let loose = Comparison { tolerance: 1e-2, percent_as_number: true };
    assert!(parse("0.333").equals(&parse("1/3"), loose));
    assert!(parse("3.14").equals(&parse(r"\pi"), loose));
    assert!(parse("50%").equals(&parse("50"), loose));
    assert!(parse("50%").equals(&parse("0.5"), loose));
    assert!(!parse("50%").equals(&parse("5000"), loose));
    assert!(!parse("1000000").equals(&parse("1000001"), loose), "whole numbers are exact");
}

#[test]
fn what_is_the_same_is_spelt_the_same() {
    let canonical = |text: &str| Answer::parse(text).unwrap().canonical();
    for (same, want) in [
        (vec!["1/2", "0.5", r"\frac{1}{2}", "50%", "x = 0.5"], "1/2"),
        (vec!["1,234", "1234", "1234.0"], "1234"),
        (vec![r"\{1, 2\}", "2, 1"], "{1,2}"),
        (vec!["(1, 2)", r"\left(1,2\right)"], "(1,2)"),
    ] {
        for text in same {
            assert_eq!(canonical(text), want, "{text}");
        }
    }
    assert_eq!(canonical(r"\sqrt{2}"), canonical(r"2/\sqrt{2}"));
    assert_eq!(canonical("x + y"), canonical("y + x"));
    for (a, b) in [("1", "2"), ("(1,2)", "[1,2]"), ("x", "y"), ("1/3", "0.3333333"), (r"\sqrt{2}", "1.4142135")] {
        assert_ne!(canonical(a), canonical(b), "{a} and {b}");
    }
}
