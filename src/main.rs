fn main() {
    let device: gru_wgpu::Device =
        std::env::args().nth(1).unwrap_or("software".into()).parse().unwrap();
    println!("{device}");
    let t = std::time::Instant::now();
    for f in gru_wgpu::check::run(&device).unwrap() {
        println!("{:60} {} {:.1e} {:.3} {}", f.subject, f.cases, f.error, f.share, f.worst);
    }
    println!("{:?}", t.elapsed());
}
