from leanresnet.program import main

if __name__ == "__main__":
    main()
